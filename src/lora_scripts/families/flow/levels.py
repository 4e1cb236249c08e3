"""The noise levels that a base is drawn with, as its folder says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.families.sd.component import SCHEDULER, configured, number_of, shift_of
from lora_scripts.losses.flow import Mu, Sigmas, by_resolution

_LINE = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
"""What diffusers makes up for what a config leaves out."""


def sigmas_of(path: Path, usual: Sigmas) -> Sigmas:
    """By the scheduler of a folder; `usual` for a file, and for a folder that has none.

    What a scheduler's config leaves out, diffusers makes up so.
    """
    if not path.is_dir():
        return usual
    with configured(path / "scheduler", SCHEDULER) as config:
        if not config:
            return usual
        terminal = number_of(config, "shift_terminal", 0.0) if config.get("shift_terminal") else 0.0
        if not config.get("use_dynamic_shifting"):
            return Sigmas(shift_of(config), terminal=terminal)
        linear = config.get("time_shift_type") == "linear"
        return Sigmas(mu=line_of(config), kind="linear" if linear else "exponential", terminal=terminal)


def line_of(config: Mapping[str, Any]) -> Mu:
    """Of a scheduler whose shift grows with the picture. ValueError for what is no line."""
    low, high, fewest, most = (number_of(config, key, usual) for key, usual in _LINE.items())
    if int(fewest) == int(most):
        raise ValueError("base_image_seq_len is max_image_seq_len")
    return by_resolution(low, high, int(fewest), int(most))
