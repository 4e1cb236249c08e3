"""BLIP-2: BLIP's eyes before a language model (Li et al. 2023, https://arxiv.org/abs/2301.12597)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration

from lora_scripts.label.base import CaptionOptions
from lora_scripts.label.writer import Writer


class Blip2:
    """Salesforce/blip2-opt-2.7b, blip2-flan-t5-xl and their kin. Without an instruction it writes a plain caption."""

    name = "BLIP-2"
    limits: str | None = None
    kind: Literal["sentence", "tags"] = "sentence"

    def __init__(self, folder: Path, options: CaptionOptions) -> None:
        self.writer = Writer(Blip2ForConditionalGeneration, folder, options)
        config = self.writer.model.config
        picture = [config.image_token_index] * config.num_query_tokens
        # The tokenizer brings what frames a text: OPT has its beginning after the picture, T5 an end.
        self.prompt = torch.tensor(picture + self.writer.tokenizer(options.instruction or "").input_ids)  # [tokens]
        # A decoder answers with the prompt before its text, an encoder with a decoder does not.
        self.skip = 0 if config.text_config.is_encoder_decoder else len(self.prompt)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        ids = self.prompt.repeat(len(images), 1)
        inputs = {**self.writer.pixels(images), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.writer.write(inputs, prompt=self.skip)


def load(folder: Path, options: CaptionOptions) -> Blip2:
    """From a folder with config.json, safetensors weights, tokenizer and image preprocessor. Raises UserError."""
    return Blip2(folder, options)
