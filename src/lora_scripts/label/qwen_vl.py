"""Qwen2.5-VL and Qwen3-VL: follow an instruction (Bai et al. 2025, https://arxiv.org/abs/2502.13923).

Their processor in transformers wants torchvision for videos, so the prompt is put together here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from lora_scripts.label.base import CaptionOptions
from lora_scripts.label.writer import Writer, instruction

PICTURE = "<|image_pad|>"
SYSTEM = {"qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "qwen3_vl": ""}
"""What the chat template of each puts first."""
_MAX_PIXELS = 1024 * 1024  # a caption needs no more, while the models' own limits let 12 million pixels through
_MAX_RATIO = 100  # beyond 200 : 1 the image processor refuses


class QwenVl:
    """Qwen2.5-VL-…-Instruct and Qwen3-VL-…-Instruct."""

    name = "Qwen-VL"
    limits: str | None = None
    kind: Literal["sentence", "tags"] = "sentence"

    def __init__(self, folder: Path, options: CaptionOptions) -> None:
        words = instruction(options, PICTURE)
        self.writer = Writer(AutoModelForImageTextToText, folder, options)
        size = self.writer.image_processor.size
        size["longest_edge"] = min(size["longest_edge"], _MAX_PIXELS)  # for this model an area, in pixels
        self.head, self.tail = (
            self.writer.tokenizer(text, add_special_tokens=False).input_ids
            for text in (
                f"{SYSTEM[self.writer.model.config.model_type]}<|im_start|>user\n<|vision_start|>",
                f"<|vision_end|>{words}<|im_end|>\n<|im_start|>assistant\n",
            )
        )

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        inputs = self.writer.pixels([_stout(image) for image in images])
        picture = self.writer.model.config.image_token_id
        merged = self.writer.image_processor.merge_size**2  # patches to a token
        counts = (inputs["image_grid_thw"].prod(dim=1) // merged).tolist()
        rows = [torch.tensor([*self.head, *[picture] * count, *self.tail]) for count in counts]
        # Filled up on the left, so that every answer follows its prompt at once.
        ids = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=self.writer.tokenizer.pad_token_id, padding_side="left"
        )  # [n, tokens]
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long()
        inputs |= {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == picture).int()}
        return self.writer.write(inputs, prompt=ids.shape[1])


def load(folder: Path, options: CaptionOptions) -> QwenVl:
    """From a folder with config.json, safetensors weights, tokenizer and image preprocessor. Raises UserError."""
    return QwenVl(folder, options)


def _stout(image: Image.Image) -> Image.Image:
    """The picture; one that is extremely long and thin is made thicker."""
    width, height = image.size
    size = max(width, -(-height // _MAX_RATIO)), max(height, -(-width // _MAX_RATIO))
    return image if size == image.size else image.resize(size)
