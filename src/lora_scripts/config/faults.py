"""What is wrong with a key or its value, in words: (fault, mend) for what the schema refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lora_scripts.config.values import did_you_mean

# The names that other trainers give to our keys.
FOREIGN = {
    "alpha": "lora_alpha",
    "caption_dropout_rate": "caption_dropout",
    "dataset_repeats": "repeats",
    "dim": "lora_rank",
    "flip_aug": "flip",
    "gradient_accumulation_steps": "gradient_accumulation",
    "image_dir": "train_data_dir",
    "in_json": "metadata_path",
    "instance_data_dir": "train_data_dir",
    "keep_last_n_steps": "keep_last",
    "keep_tokens": "keep_tags",
    "lr": "learning_rate",
    "lr_scheduler": "lr_schedule",
    "lr_scheduler_type": "lr_schedule",
    "lr_warmup_steps": "warmup_steps",
    "max_train_epochs": "epochs",
    "max_train_steps": "epochs",
    "mixed_precision": "precision",
    "network_alpha": "lora_alpha",
    "network_dim": "lora_rank",
    "network_dropout": "lora_dropout",
    "network_weights": "init_lora",
    "num_epochs": "epochs",
    "num_repeats": "repeats",
    "num_train_epochs": "epochs",
    "output_name": "output_dir",
    "pretrained_model_name_or_path": "base_model",
    "rank": "lora_rank",
    "sample_at_first": "sample_first",
    "sample_every_n_epochs": "sample_every_epochs",
    "sample_every_n_steps": "sample_every",
    "placeholder_token": "new_token",
    "initializer_token": "token_init",
    "save_every_n_steps": "save_steps",
    "shuffle_caption": "shuffle_tags",
    "target_modules": "targets",
    "train_batch_size": "batch_size",
    "unet_lr": "learning_rate",
    "v_parameterization": "prediction",
    "validation_prompts": "sample_prompts",
}
_TRUE, _FALSE = ("yes", "y", "on", "true", "1"), ("no", "n", "off", "false", "0")


def our_name(key: str, fields: Iterable[str]) -> str | None:
    """The key that was probably meant by an unknown one, or None."""
    return FOREIGN.get(key.casefold().replace("-", "_")) or did_you_mean(key, fields)


def show(value: object) -> str:
    """A config value as a person would write it, shortened."""
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(show, value)) + "]" if len(value) <= 4 else "a list"
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= 60 else text[:57] + '…"'


def explain(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """(fault, mend) of one of pydantic's errors."""
    kind, value, limits = error["type"], error["input"], error.get("ctx", {})
    if value is None:
        return "has no value", "write one, or remove the line"
    if kind == "value_error":
        fault, _, mend = str(limits["error"]).partition("; ")
        return (_got(fault, value) if fault.startswith("must") else fault), mend or None
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in re.split(", | or ", limits["expected"])]
        near = _nearest_choice(value, choices) if isinstance(value, str) else None
        return _got(f"must be one of {', '.join(choices)}", value), f"did you mean {near}?" if near else None
    if kind in _TYPES:
        wanted, usual = _TYPES[kind]
        return _got(f"must be {wanted}", value), _mend(kind, value) or usual
    words = _LIMITS.get(kind)
    return _got(words.format(**limits) if words else str(error["msg"]), value), None


_TYPES: dict[str, tuple[str, str | None]] = {
    "int_type": ("a whole number", None),
    "int_from_float": ("a whole number", None),
    "float_type": ("a number", None),
    "finite_number": ("a number that is not infinite", None),
    "bool_type": ("true or false", None),
    "string_type": ("a text", "put it in quotes"),
    "model_type": ("a pattern in quotes, or match: with rank, alpha or lr", None),
    "model_attributes_type": ("a pattern in quotes, or match: with rank, alpha or lr", None),
    "dataclass_type": ("a pattern in quotes, or match: with rank, alpha or lr", None),
    "tuple_type": ("a list", 'write it as ["one", "two"]'),
}
_LIMITS = {
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
}


def _got(fault: str, value: object) -> str:
    return f"{fault}, not {show(value)}"


def _nearest_choice(value: str, choices: list[str]) -> str | None:
    """The choice that was meant: the nearest, or one that the value only spells out ("v_prediction", "eps")."""
    value = value.casefold()
    spelt = (choice for choice in choices if value.startswith(choice) or (value and choice.startswith(value)))
    return did_you_mean(value, choices) or next(spelt, None)


def _mend(kind: str, value: object) -> str | None:
    """The mend that the value itself suggests."""
    word = str(value).strip().lower()
    if kind == "bool_type":
        return "write true" if word in _TRUE else "write false" if word in _FALSE else None
    if isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+(e[-+]?[0-9]+)?", word):
        return "remove the quotes"
    if isinstance(value, str) and re.fullmatch(r"[0-9]+,[0-9]+", word):
        return "write the decimal point as ."
    return None
