"""Where alpha stands, of a LoRA whose file does not hold it beside the matrices.

kohya's files hold it as a tensor, PEFT in `adapter_config.json`, diffusers in the metadata (`lora_adapter_metadata`). A
file that we wrote with diffusers' names has it folded into `up` and tells it in `lora_scripts.alpha`; see
`dialects.py`. Where a file is silent, alpha = rank, as every program reads it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError

ALPHA_KEY = "lora_scripts.alpha"
DIFFUSERS_KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class Alphas:
    """Where alpha stands, if not beside the matrices."""

    folded: float | Mapping[str, float] | None = None
    """In our own metadata, of all layers or by path: `up` was multiplied by alpha / rank."""
    told: Callable[[str, int], float | None] = lambda path, rank: None
    """(path, rank) -> alpha."""


def alphas_of(metadata: Mapping[str, str], file: Path | None = None) -> Alphas:
    """What the metadata tells of alpha. UserError where that cannot be read."""
    if ALPHA_KEY not in metadata:
        return _of_diffusers(metadata[DIFFUSERS_KEY], file) if DIFFUSERS_KEY in metadata else Alphas()
    try:
        told = json.loads(metadata[ALPHA_KEY])
        if isinstance(told, dict):
            return Alphas(folded={str(path): float(alpha) for path, alpha in told.items()})
        return Alphas(folded=float(told))
    except (ValueError, TypeError, RecursionError):
        raise UserError(
            f"the metadata {ALPHA_KEY} is not readable", file=file, hint=f"take it out: metadata --set {ALPHA_KEY}="
        ) from None


def of_peft(configs: Mapping[str, Mapping[str, Any]]) -> Alphas:
    """By the LoraConfigs of PEFT adapters, by part of the model."""
    return Alphas(told=lambda path, rank: _peft_alpha(configs, path, rank))


def _of_diffusers(text: str, file: Path | None) -> Alphas:
    """diffusers' `lora_adapter_metadata`: the LoraConfig of every part, with its name before each key ("unet.r"); of a
    part that was saved alone there is no name.
    """
    try:
        settings = json.loads(text)
        assert isinstance(settings, dict)
    except (ValueError, AssertionError, RecursionError):
        hint = f"take it out: metadata --set {DIFFUSERS_KEY}="
        raise UserError(f"the metadata {DIFFUSERS_KEY} is not readable", file=file, hint=hint) from None

    def told(path: str, rank: int) -> float | None:
        part = path.partition(".")[0]
        own = {key.removeprefix(f"{part}."): v for key, v in settings.items() if key.startswith(f"{part}.")}
        config = own or settings
        return _peft_alpha({part: config}, path, rank) if "lora_alpha" in config else None

    return Alphas(told=told)


def _peft_alpha(configs: Mapping[str, Mapping[str, Any]], path: str, rank: int) -> float:
    """alpha of a layer by the LoraConfig of its part."""
    part, _, inner = path.partition(".")
    config = configs[part]
    told = _pattern(config.get("alpha_pattern") or {}, inner, config.get("lora_alpha", rank))
    try:
        alpha = float(told)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"the alpha of {path} is told as {told!r}", hint="get the original file") from None
    # rsLoRA (Kalajdzievski 2023): alpha over the root of the rank.
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _pattern(patterns: object, inner: str, default: Any) -> Any:
    """PEFT's rule: the first expression that matches the path, or its end from a dot on."""
    if not isinstance(patterns, Mapping):
        raise UserError("alpha_pattern is no table of alphas", hint="get the original file")
    for pattern, value in patterns.items():
        try:
            # The text encoder's paths with and without the part that transformers 5.6 dropped.
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in (inner, f"text_model.{inner}")):
                return value
        except re.error:
            raise UserError(f"{pattern!r} in alpha_pattern is no expression", hint="get the original file") from None
    return default
