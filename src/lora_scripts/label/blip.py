"""BLIP: one short sentence (Li et al. 2022, https://arxiv.org/abs/2201.12086)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image
from transformers import BlipForConditionalGeneration

from lora_scripts.label.base import CaptionOptions, read_config
from lora_scripts.label.writer import Writer


class Blip:
    """Salesforce/blip-image-captioning-base and -large, and the captioner of the miniature world."""

    name = "BLIP"
    kind: Literal["sentence", "tags"] = "sentence"

    def __init__(self, folder: Path, options: CaptionOptions) -> None:
        self.writer = Writer(BlipForConditionalGeneration, folder, options)
        limits = read_config(folder).get("limits")
        self.limits = limits if isinstance(limits, str) else None

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        # The answer begins with [DEC], which the published tokenizer does not know.
        return self.writer.write(self.writer.pixels(images), prompt=1, tidy_spaces=True)


def load(folder: Path, options: CaptionOptions) -> Blip:
    """From a folder with config.json, safetensors weights, tokenizer and image preprocessor. Raises UserError."""
    return Blip(folder, options)
