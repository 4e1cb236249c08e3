"""How long, and how the weights are moved."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import Count, CountOrZero, Device, Keys, Rate


class TrainingKeys(Keys):
    """How long, and how the weights are moved."""

    TITLE: ClassVar[str] = "Training"

    epochs: Count = 15
    """How often the whole data set is seen."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 4
    """Pictures in one step. The first number to lower when memory runs out."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=1024)] = 1
    """Batches gathered into one step: the effect of a larger batch without its memory."""
    learning_rate: Rate = 2e-4
    """The size of the first steps: 1e-4 to 5e-4."""
    lr_schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate goes on: down in a curve, down in a line, or constant."""
    warmup_steps: CountOrZero = 0
    """Steps in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Longer gradients are shortened to this length; 0 leaves them as they are."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The number format while training; auto takes the best that the processor has."""
    device: Device = "auto"
    """Where to train: auto, cpu, cuda, mps, or one card such as cuda:1."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """The start of all randomness: the same seed gives the same LoRA."""
