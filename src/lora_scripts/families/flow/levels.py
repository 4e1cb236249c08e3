"""The noise levels that a base is drawn with, as its folder says."""

from __future__ import annotations

from pathlib import Path

from lora_scripts.families.sd.check import read_config
from lora_scripts.losses.flow import Sigmas, by_resolution


def sigmas_of(path: Path, usual: Sigmas) -> Sigmas:
    """By the scheduler of a folder; `usual` for a file, and for a folder that has none.

    What a scheduler's config leaves out, diffusers makes up so.
    """
    config = read_config(path / "scheduler", "scheduler_config.json") if path.is_dir() else None
    if config is None:
        return usual
    terminal = float(config.get("shift_terminal") or 0.0)
    if not config.get("use_dynamic_shifting"):
        return Sigmas(float(config.get("shift", 1.0)), terminal=terminal)
    mu = by_resolution(
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
    )
    linear = config.get("time_shift_type") == "linear"
    return Sigmas(mu=mu, kind="linear" if linear else "exponential", terminal=terminal)
