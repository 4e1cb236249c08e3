"""Which pictures of a run are held out: some of its own, or those of a folder of their own; never a copy of another."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from lora_scripts.check import duplicates
from lora_scripts.check.align import GRID
from lora_scripts.check.facts import PictureFacts
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.image import load_rgb
from lora_scripts.data.scan import Sample, scan
from lora_scripts.data.split import FEWEST, hold_out, share_of
from lora_scripts.errors import UserError

PREFIX = "held out/"
"""In the names of pictures of `val_data_dir`, to tell them from the others."""


def split(config: TrainConfig, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """(trained, held out). UserError where `patience` has nothing to go by."""
    if config.val_data_dir is not None:
        found = scan(config.val_data_dir, allow_missing_captions=config.allow_missing_captions)
        found = [replace(s, name=f"{PREFIX}{s.name}") for s in found]
        double = copies([*samples, *found])
        train, held = list(samples), [s for s in found if s.name not in double]
        if len(held) < len(found):
            print(f"note: {len(found) - len(held)} pictures of val_data_dir are there twice, or trained, and left out")
    else:
        wanted = share_of(len(samples), config.val_split)
        train, held = hold_out(samples, wanted, config.seed, copies(samples) if wanted else ())
    if config.patience is not None and not held:
        hint = "add val_split: 0.2, or val_data_dir, or leave patience out"
        raise UserError(f"patience: no picture is held out (of fewer than {FEWEST} none is by itself)", hint=hint)
    return train, held


def copies(samples: Sequence[Sample]) -> set[str]:
    """Names of pictures that are the same as another, nearly the same, or its mirror image."""

    def facts(sample: Sample) -> PictureFacts:
        grid = load_rgb(sample.path).resize((GRID, GRID), Image.Resampling.BOX)
        size, digest = (sample.width, sample.height), sample.digest
        return PictureFacts(sample.name, digest, 0, "", size=size, pixels=digest, grid=grid.tobytes())

    with ThreadPoolExecutor(4) as pool:
        found = duplicates.find(list(pool.map(facts, samples)))
    return {name for cluster in (*found.exact, *found.near, *found.mirrored) for name in cluster}
