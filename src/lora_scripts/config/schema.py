"""The one config of a training run: typed, frozen, unknown keys refused; the doc of a field stands under the field.

The keys themselves stand in `config/keys/`, a file for each group. Relative paths count from the folder in which the
command is started, not from the folder of the config file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from lora_scripts.config.keys.adapter import AdapterKeys
from lora_scripts.config.keys.data import DataKeys
from lora_scripts.config.keys.memory import MemoryKeys
from lora_scripts.config.keys.objective import ObjectiveKeys
from lora_scripts.config.keys.paths import PathKeys
from lora_scripts.config.keys.previews import PreviewKeys
from lora_scripts.config.keys.saving import SavingKeys
from lora_scripts.config.keys.speed import SpeedKeys
from lora_scripts.config.keys.texts import TextKeys
from lora_scripts.config.keys.token import TokenKeys
from lora_scripts.config.keys.training import LrSchedule, TrainingKeys
from lora_scripts.config.keys.validation import ValidationKeys
from lora_scripts.config.types import Fault, Keys, TargetRule
from lora_scripts.errors import UserError

GROUPS: tuple[type[Keys], ...] = (
    PathKeys,
    DataKeys,
    TextKeys,
    AdapterKeys,
    TokenKeys,
    TrainingKeys,
    ObjectiveKeys,
    MemoryKeys,
    SpeedKeys,
    SavingKeys,
    ValidationKeys,
    PreviewKeys,
)
"""In the order of the resolved config."""


class TrainConfig(
    PathKeys,
    DataKeys,
    TextKeys,
    AdapterKeys,
    TokenKeys,
    TrainingKeys,
    ObjectiveKeys,
    MemoryKeys,
    SpeedKeys,
    SavingKeys,
    ValidationKeys,
    PreviewKeys,
):
    """Everything that decides a training run; made by `load_config`, or directly with the same checks of values."""

    TITLE: ClassVar[str] = "Training run"

    @model_validator(mode="before")
    @classmethod
    def _folder_of_file(cls, values: Any) -> Any:
        """The folder of `train_file` is that of the data."""
        if isinstance(values, dict) and isinstance(values.get("train_file"), str | Path):
            return {"train_data_dir": Path(values["train_file"]).parent, **values}
        return values

    @model_validator(mode="after")
    def _no_conflicts(self) -> TrainConfig:
        if found := conflicts(self.__dict__, self.model_fields_set):
            raise ValueError("; ".join(f"{key} {fault}; {mend}" for key, fault, mend in found))
        return self

    @property
    def name(self) -> str:
        """The LoRA's name: that of the output folder."""
        return Path(os.path.abspath(self.output_dir)).name

    @property
    def named_words(self) -> tuple[str, ...]:
        """The words that are said to call the LoRA; none: what the captions begin with."""
        word = self.trigger_word or ()
        return self.new_token or ((word,) if isinstance(word, str) else word)

    @property
    def preserved_words(self) -> tuple[str, ...]:
        """What stands in their place where the base is held to."""
        return (self.preserve_word,) if isinstance(self.preserve_word, str) else self.preserve_word

    @property
    def family_settings(self) -> dict[str, Any]:
        """The keys that a family may have a use for."""
        keys = ("prediction", "zero_terminal_snr", "clip_skip", "caption_tokens")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @property
    def records(self) -> Path:
        """Where the records of a language model are: a file or a folder."""
        return self.train_file or self.train_data_dir

    @property
    def held_out_records(self) -> Path | None:
        """Where those are that are measured and not trained, if they lie elsewhere."""
        return self.val_file or self.val_data_dir

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of `resolution`, in pixels."""
        return _pair(self.resolution)

    @property
    def rules(self) -> tuple[TargetRule, ...]:
        """`targets`, each as a rule."""
        return tuple(t if isinstance(t, TargetRule) else TargetRule(match=t) for t in self.targets)

    @property
    def effective_alpha(self) -> float:
        """`lora_alpha`, by default the rank."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def effective_text_encoder_lr(self) -> float | tuple[float, ...] | None:
        """`text_encoder_lr`, by default a quarter of `learning_rate`; None where the text encoder is frozen."""
        if not self.train_text_encoder:
            return None
        if self.optimizer == "prodigy":  # it takes one rate for all
            return self.learning_rate
        return self.learning_rate / 4 if self.text_encoder_lr is None else self.text_encoder_lr

    def text_encoder_rates(self, parts: Sequence[str]) -> dict[str, float]:
        """The learning rate of each text encoder that is trained, of those that the base has. UserError for a list of
        another length."""
        rate = self.effective_text_encoder_lr
        if rate is None:
            return {}
        rates = rate if isinstance(rate, tuple) else (rate,) * len(parts)
        if len(rates) != len(parts):
            text = f"text_encoder_lr has {len(rates)} rates, the base model has {len(parts)} text encoder"
            raise UserError(text + "s" * (len(parts) > 1), hint="write one rate for all, or one for each")
        return {part: own for part, own in zip(parts, rates, strict=True) if own}

    @property
    def effective_lr_schedule(self) -> LrSchedule:
        """`lr_schedule`; constant where the optimizer needs no other."""
        return "constant" if self.optimizer == "schedule_free" else self.lr_schedule

    @property
    def effective_sample_every(self) -> int:
        """`sample_every`, by default `save_steps`; 0: no previews while training."""
        return self.save_steps if self.sample_every is None else self.sample_every

    def preview_steps(self, steps_per_epoch: int) -> int:
        """Steps from one preview to the next; 0: no previews while training."""
        if self.sample_every_epochs is not None:
            return self.sample_every_epochs * steps_per_epoch
        return self.effective_sample_every

    @property
    def effective_sample_size(self) -> tuple[int, int]:
        """(width, height) of `sample_size`, by default of `resolution`, in pixels."""
        return self.size if self.sample_size is None else _pair(self.sample_size)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


NEEDS = {key: feature for group in GROUPS for key, feature in group.NEEDS.items()}
"""Key -> what it needs of the base's family."""


def conflicts(values: Mapping[str, Any], given: Set[str]) -> list[Fault]:
    """The faults of every key in `given` that does nothing beside the others (see `Keys.idle`)."""
    return [fault for group in GROUPS for fault in group.idle(values) if fault[0] in given]
