"""Aspect-ratio buckets and the views of an image that are trained on. Pure arithmetic; sizes are (width, height)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_scripts.errors import UserError

Size = tuple[int, int]

STEPS = (64, 8)
"""Of what sides are multiples, mostly and at small resolutions at least, where no base says otherwise."""
MAX_RATIO = 2.5
"""Longest to shortest side of a bucket. Longer images lose their ends."""
ZOOM = 1.125
"""For a random crop an image is scaled by this much more; the crop shows 1 / 1.125^2 = 79 % of the centred one."""
CROPS = 4
"""Crop positions of an image with random crop: one centred and three random."""


@dataclass(frozen=True)
class View:
    """One way to see an image at a bucket's size: scale to `scaled`, cut `bucket` out at (left, top), then mirror."""

    bucket: Size
    scaled: Size
    left: int
    top: int
    flip: bool


def bucket_sizes(resolution: Size, step: int = STEPS[0], least: int = STEPS[1]) -> list[Size]:
    """The sizes at which images are trained, sorted by width / height; `resolution` itself is always among them.

    Every other size has sides that are multiples of `step`, an area at most that of `resolution` that a further step
    would exceed, and a ratio up to `MAX_RATIO` : 1. For small resolutions the step is finer, an eighth of the side and
    no less than `least`, of which it is a multiple, as `step` is.
    Raises UserError for a resolution that is not made of multiples of `least` from 64 on.
    """
    width, height = resolution
    if min(resolution) < 64 or width % least or height % least:
        raise UserError(f"resolution {width} x {height}: both sides must be multiples of {least}, and at least 64")
    step = min(step, max(least, min(resolution) // 8 // least * least))
    area = width * height
    sizes = {resolution}
    for side in range(step, math.isqrt(int(area * MAX_RATIO)) + 1, step):
        other = area // side // step * step
        if other and max(side / other, other / side) <= MAX_RATIO:
            sizes |= {(side, other), (other, side)}
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def choose_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket nearest in log(width / height), which loses least of the image; of equals, the one with more area."""
    ratio = math.log(size[0] / size[1])

    def distance(bucket: Size) -> tuple[float, int, Size]:
        off = abs(math.log(bucket[0] / bucket[1]) - ratio)
        return (round(off, 9), -bucket[0] * bucket[1], bucket)

    return min(buckets, key=distance)


def views(size: Size, bucket: Size, *, flip: bool, random_crop: bool, seed: int, index: int) -> list[View]:
    """The variants of image `index` that are cached: 1, or 4 with random crop; twice as many with flip.

    The first is the centred crop of the smallest scaling that covers the bucket. The crops' positions are a function of
    (seed, index, number of the crop). With flip each variant is followed by its mirror image. Width and height are
    scaled by one factor, to within half a pixel.
    """
    scaled = _cover(size, bucket, 1.0)
    crops = [View(bucket, scaled, (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2, flip=False)]
    if random_crop:
        scaled = _cover(size, bucket, ZOOM)
        for number in range(1, CROPS):
            rng = random.Random(f"crop/{seed}/{index}/{number}")
            left, top = (rng.randint(0, large - small) for large, small in zip(scaled, bucket, strict=True))
            crops.append(View(bucket, scaled, left, top, flip=False))
    return [replace(view, flip=mirrored) for view in crops for mirrored in ((False, True) if flip else (False,))]


def _cover(size: Size, bucket: Size, zoom: float) -> Size:
    factor = max(bucket[0] / size[0], bucket[1] / size[1]) * zoom
    return max(bucket[0], round(size[0] * factor)), max(bucket[1], round(size[1] * factor))
