"""The keys of a config that 1.x and XL have a use for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lora_scripts.families.clip import prompts
from lora_scripts.losses import diffusion


@dataclass(frozen=True)
class Settings:
    """What a base was made with, and how captions are read."""

    prediction: diffusion.Prediction = "epsilon"
    """What the base answers with."""
    zero_terminal_snr: bool = False
    """That the base was made for a noise schedule that ends in pure noise."""
    clip_skip: int = 1
    """1: the text encoder's last layer is read; 2: the one before it, and so on."""
    caption_tokens: int = prompts.ROOM
    """Where captions are cut off: 75, 150 or 225 tokens. Prompts of pictures are never cut."""

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Settings:
        """Those among the keys; the usual values of the others."""
        return cls(**{field.name: keys[field.name] for field in fields(cls) if field.name in keys})

    @property
    def objective(self) -> diffusion.Objective:
        """What the base itself was made with; nothing weighted."""
        return diffusion.Objective(self.prediction, zero_terminal_snr=self.zero_terminal_snr)

    @property
    def chunks(self) -> int:
        """Of a caption."""
        return self.caption_tokens // prompts.ROOM
