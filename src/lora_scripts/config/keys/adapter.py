"""What is trained: layers, size, start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lora_scripts.config.types import ConfigPath, Fault, Keys, Rate, Targets, no_effect


class AdapterKeys(Keys):
    """What is trained: layers, size, start."""

    TITLE: ClassVar[str] = "LoRA"

    lora_rank: Annotated[int, Field(ge=1, le=128)] = 16
    """The size of the LoRA: 8 for a person or a thing, 12 to 16 for a style, at most 128."""
    lora_alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    """The LoRA's strength is alpha / rank. Without it, alpha is the rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the LoRA's inputs dropped in each step."""
    targets: Targets = ("attention", "feed_forward")
    """Which layers are trained: attention, feed_forward, conv, or patterns with * that match the names of layers."""
    train_text_encoder: bool = False
    """Train the text encoder too."""
    text_encoder_lr: Rate | None = None
    """The text encoder's learning rate. Without it, a quarter of learning_rate. Only with train_text_encoder."""
    init_lora: ConfigPath | None = None
    """An earlier LoRA (.safetensors) to start from; its rank is taken over."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        if values.get("text_encoder_lr") is not None and values.get("train_text_encoder") is False:
            yield no_effect("text_encoder_lr", "train_text_encoder", "train_text_encoder: true")
