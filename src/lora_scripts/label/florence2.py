"""Florence-2: short, detailed or very detailed, by task (Xiao et al. 2023, https://arxiv.org/abs/2311.06242)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from transformers import Florence2ForConditionalGeneration

from lora_scripts.label.base import CaptionOptions
from lora_scripts.label.writer import Writer

TASKS = {
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
}
"""Task -> the words that the model was trained with for it (transformers, `Florence2Processor`)."""
DEFAULT_TASK = "<DETAILED_CAPTION>"


class Florence2:
    """florence-community/Florence-2-base, -large and the models made from them."""

    name = "Florence-2"
    limits: str | None = None
    kind: Literal["sentence", "tags"] = "sentence"

    def __init__(self, folder: Path, options: CaptionOptions) -> None:
        self.writer = Writer(Florence2ForConditionalGeneration, folder, options)
        words = TASKS[options.instruction or DEFAULT_TASK]
        self.words = self.writer.tokenizer(words).input_ids  # <s> words </s>

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        config = self.writer.model.config
        pixels = self.writer.pixels(images)
        height, width = (
            side // math.prod(config.vision_config.patch_stride) for side in pixels["pixel_values"].shape[-2:]
        )
        # The vision tower gives each place a token, and the picture as a whole one more.
        picture = [config.image_token_id] * (height * width + 1)
        ids = torch.tensor(picture + self.words).repeat(len(images), 1)  # [n, tokens]
        return self.writer.write({**pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)})


def load(folder: Path, options: CaptionOptions) -> Florence2:
    """From a folder with config.json, safetensors weights, tokenizer and image preprocessor. Raises UserError."""
    return Florence2(folder, options)
