"""How long, and how the weights are moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import Count, CountOrZero, Device, Fault, Keys, no_effect

LrSchedule = Literal["cosine", "constant", "linear", "cosine_restarts", "polynomial"]
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free"]
PACKAGES = {
    "adamw8bit": ("bitsandbytes", "bitsandbytes"),
    "lion": ("lion_pytorch", "lion-pytorch"),
    "prodigy": ("prodigyopt", "prodigyopt"),
    "schedule_free": ("schedulefree", "schedulefree"),
}
"""Optimizers that need a package of their own: its module, and the name to install."""
DESTROYS = 0.05
"""A learning rate that none but prodigy bears: a LoRA of the bundled miniature, which bears more than a large base, is
worse than the base after 0.04."""


LONGEST_ACCUMULATION = 1024


def _own_rate(target: object) -> object:
    """The learning rate of one of `targets`, as it is written or as it was read; None: that of all."""
    return target.get("lr") if isinstance(target, Mapping) else getattr(target, "lr", None)


class TrainingKeys(Keys):
    """How long, and how the weights are moved."""

    TITLE: ClassVar[str] = "Training"

    epochs: Count = 15
    """How often the whole data set is seen."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 4
    """Pictures in one step. The first number to lower when memory runs out."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=LONGEST_ACCUMULATION)] = 1
    """Batches gathered into one step: the effect of a larger batch without its memory."""
    optimizer: Optimizer = "adamw"
    """How the weights are moved: adamw, adamw8bit, adafactor, lion, prodigy or schedule_free."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """The size of the first steps: 1e-4 to 5e-4; a third of that for lion, 1 for prodigy."""
    lr_schedule: LrSchedule = "cosine"
    """How the learning rate goes on: down in a curve (cosine, polynomial) or a line, again and again, or constant."""
    lr_cycles: Annotated[int, Field(ge=1, le=100)] = 1
    """How many curves down cosine_restarts makes."""
    lr_power: Annotated[float, Field(gt=0, le=10)] = 2.0
    """How steep polynomial falls at first."""
    warmup_steps: CountOrZero = 0
    """Steps in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """How strongly the optimizer, whichever it is, draws the LoRA's numbers towards zero."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Longer gradients are shortened to this length; 0 leaves them as they are."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Save a moving average of the weights in place of the last ones: 0.99 for short runs, 0.999 for long ones."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The number format while training; auto takes the best that the processor has."""
    device: Device = "auto"
    """Where to train: auto, cpu, cuda, mps, or one card such as cuda:1."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """The start of all randomness: the same seed gives the same LoRA."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        optimizer, rate, schedule = values.get("optimizer"), values.get("learning_rate"), values.get("lr_schedule")
        if optimizer in PACKAGES and find_spec(PACKAGES[optimizer][0]) is None:
            package = PACKAGES[optimizer][1]
            yield "optimizer", f"{optimizer} needs the package {package}", f"install it: pip install {package}"
        if optimizer == "prodigy" and isinstance(rate, float) and rate < 0.1:
            for key in ("optimizer", "learning_rate"):
                yield key, f"prodigy finds the rate itself, and scales it by learning_rate {rate:g}", "write 1"
        if optimizer == "prodigy":
            several = [key for key in ("text_encoder_lr",) if values.get(key) is not None]
            several += ["lora_plus_ratio"] if values.get("lora_plus_ratio") not in (None, 1.0) else []
            several += ["targets"] if any(map(_own_rate, values.get("targets") or ())) else []
            for key in several:
                mend = f"leave {'lr' if key == 'targets' else key} out"
                yield key, "gives a part another rate, and prodigy knows only one for all", mend
        elif optimizer not in ("prodigy", None) and rate == 1:
            yield "learning_rate", f"1 is far too high for {optimizer}", "2e-4 is a careful start"
        if optimizer == "schedule_free" and schedule != "constant":
            yield "lr_schedule", "has no effect with optimizer: schedule_free", "leave lr_schedule out"
        if schedule != "cosine_restarts":
            yield no_effect("lr_cycles", "lr_schedule: cosine_restarts", "lr_schedule: cosine_restarts")
        if schedule != "polynomial":
            yield no_effect("lr_power", "lr_schedule: polynomial", "lr_schedule: polynomial")
        if optimizer == "schedule_free" and values.get("ema_decay") is not None:
            yield "ema_decay", "averages what schedule_free averages already", "leave ema_decay out"
