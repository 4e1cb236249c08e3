"""How much of a picture's finest detail a base can draw at all: what its VAE keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lora_scripts.data.buckets import Size, bucket_sizes, choose_bucket, views
from lora_scripts.data.image import apply_view, load_rgb, on_white
from lora_scripts.errors import UserError
from lora_scripts.events import Progress, Sink
from lora_scripts.families.base import PictureFamily

LOOKED_AT = 6
"""Pictures of a set, spread evenly over it."""
KEPT = 0.3
"""Of their detail: a base that keeps less cannot draw it."""
FINE = 1.0
"""Pixels: detail is what a Gaussian of this width takes away."""
LEAST = 2.0
"""Of 255: the deviation of detail below which a picture has none."""


@dataclass(frozen=True)
class Detail:
    """The detail of one picture, before and after the VAE."""

    strength: float
    """Standard deviation of brightness, of 255, in the picture."""
    kept: float
    """The share that is still there, in its place: 1 for all; noise instead of it counts for nothing."""

    @property
    def some(self) -> bool:
        """That there is detail to keep."""
        return self.strength >= LEAST


def kept_detail(family: PictureFamily, images: Mapping[str, Path], resolution: Size, sink: Sink) -> dict[str, float]:
    """The share of its detail that each of some pictures keeps, of those that have any."""
    buckets, names = bucket_sizes(resolution, *family.facts.bucket_steps), list(images)
    count = min(len(names), LOOKED_AT)
    kept: dict[str, float] = {}
    for done, name in enumerate([names[i * len(names) // count] for i in range(count)], 1):
        try:
            image = load_rgb(images[name])
        except UserError:  # the doctor tells it elsewhere
            continue
        view = views(image.size, choose_bucket(image.size, buckets), flip=False, random_crop=False, seed=0, index=0)[0]
        detail = detail_of(family, apply_view(image, view))
        if detail.some:
            kept[name] = detail.kept
        sink(Progress("through the VAE", done, count))
    return kept


def detail_of(family: PictureFamily, pixels: Tensor) -> Detail:
    """Encodes and decodes one picture, [3, h, w] in [-1, 1]."""
    again = family.decode_image(family.encode_image(pixels[None])["mean"][0])
    before = _fine((pixels.permute(1, 2, 0).numpy() + 1) * 127.5)
    after = _fine(np.asarray(on_white(again), np.float64))
    energy = float((before**2).mean())
    return Detail(energy**0.5, float((before * after).mean() / energy) if energy else 1.0)


def _fine(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """What a slight blur takes away of the brightness, [h, w]."""
    from scipy.ndimage import gaussian_filter

    grey = np.asarray(values, np.float64) @ np.array([0.299, 0.587, 0.114])
    return grey - gaussian_filter(grey, FINE)
