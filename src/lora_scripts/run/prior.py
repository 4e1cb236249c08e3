"""Prior preservation: pictures of the class, found or drawn with the base, trained along (Ruiz et al. 2022, eq. 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample, scan
from lora_scripts.families.base import PictureFamily, Sampling
from lora_scripts.formats import io

PREFIX = "class/"
"""In the names of class pictures, to tell them from the others."""


def class_samples(
    config: TrainConfig, family: PictureFamily, folder: Path, tell: Callable[[str, int, int], None]
) -> list[Sample]:
    """The class pictures of a run: those of `class_data_dir`, and new ones in `folder` until there are `class_images`.

    The family must not wear its LoRA yet, or wear it unchanged. Picture n is a function of (seed, n), so a run that was
    interrupted goes on with the same.
    """
    found = _read(config.class_data_dir, config) if config.class_data_dir else []
    missing = max(0, config.class_images - len(found))
    if missing:
        size = (config.size[0] // 8 * 8, config.size[1] // 8 * 8)
        sampling = Sampling(config.sample_steps, config.sample_cfg, config.sample_negative, size)
        for n in range(missing):
            path = folder / f"{n:05}.png"
            if not path.exists():
                io.make_folder(folder)
                io.save_png(path, family.generate(config.class_prompt, config.seed + n, sampling))
            tell("class pictures", n + 1, missing)
        found += _read(folder, config)[:missing]
    return found


def _read(folder: Path, config: TrainConfig) -> list[Sample]:
    samples = scan(folder, None, allow_missing_captions=bool(config.class_prompt))
    return [replace(s, name=PREFIX + s.name, caption=s.caption or config.class_prompt) for s in samples]
