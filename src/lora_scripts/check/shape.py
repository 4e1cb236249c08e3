"""What the size of a picture, or of what it is made from, says about it, and about what its bucket does to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from lora_scripts.data.buckets import Size, choose_bucket, views
from lora_scripts.data.findings import Finding
from lora_scripts.data.scan import Sample
from lora_scripts.units import percent

ENLARGED = 1.1
"""A picture that its bucket enlarges by more than this has too few pixels; by less, it is noted."""
CROPPED = 0.2
"""The part of a picture that its bucket may cut away without a word."""


def in_bucket(size: Size, buckets: Sequence[Size]) -> tuple[Size, float, tuple[float, float, float, float]]:
    """The bucket of a picture, how much it is enlarged for it, and what is kept: left, top, width, height (shares)."""
    bucket = choose_bucket(size, buckets)
    view = views(size, bucket, flip=False, random_crop=False, seed=0, index=0)[0]
    across, down = view.scaled
    inside = (view.left / across, view.top / down, bucket[0] / across, bucket[1] / down)
    return bucket, max(bucket[0] / size[0], bucket[1] / size[1]), inside


def shape_findings(name: str, size: Size, buckets: Sequence[Size]) -> Iterator[Finding]:
    """Too few pixels for its bucket; too much cut away by it."""
    bucket, enlarged, (_, _, across, down) = in_bucket(size, buckets)
    shape, wanted = ("{} x {}".format(*pair) for pair in (size, bucket))
    if enlarged > 1:
        message = f"{shape} px is small: it is enlarged {enlarged:.2f}-fold to {wanted}"
        mend = "look for a larger copy, remove it, or train at a lower resolution"
        yield Finding("too_small", "warning" if enlarged > ENLARGED else "note", (name,), message, mend)
    lost = 1 - across * down
    if lost > CROPPED:
        message = f"{shape} px is an odd shape: its bucket {wanted} cuts {percent(lost)} away"
        yield Finding("odd_aspect", "warning", (name,), message, "crop it yourself to what matters")


def reference_shapes(samples: Sequence[Sample], buckets: Sequence[Size]) -> Iterator[Finding]:
    """References of which the model is shown too little: each has a bucket of its own."""
    of = cache(lambda size: in_bucket(size, buckets))  # sizes are few
    for sample in samples:
        for one in sample.references:
            bucket, _, (_, _, across, down) = of(size := (one.width, one.height))
            if (lost := 1 - across * down) > CROPPED:
                shape, wanted = ("{} x {}".format(*pair) for pair in (size, bucket))
                cut = percent(lost)
                message = f"its reference {one.name} is an odd shape, {shape} px: the bucket {wanted} cuts {cut} away"
                yield Finding("odd_reference", "warning", (sample.name,), message, "crop it yourself to what matters")
