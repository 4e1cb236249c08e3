"""What is written while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lora_scripts.config.types import Count, Keys


class SavingKeys(Keys):
    """What is written while training."""

    TITLE: ClassVar[str] = "Saving"
    NEEDS: ClassVar[Mapping[str, str]] = {"metadata_captions": "pictures"}

    save_steps: Count = 100
    """A LoRA file and a resume state are written every so many steps."""
    keep_last: Count | None = None
    """How many of the LoRA files written on the way are kept. Without it, all."""
    save_precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """The number format of the LoRA file."""
    metadata_captions: bool = False
    """Write the captions and the name of the data folder into the LoRA file."""
    language: Literal["auto", "en", "zh"] = "auto"
    """The language in which report and check page open, and that of the card: en, zh, or auto, as the browser is set. A
    button on the page changes it."""
