"""Training pictures as they are planned: which views of each are trained, and what they are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from lora_scripts.data.buckets import Size, View, bucket_sizes, choose_bucket, views
from lora_scripts.data.scan import Sample


@dataclass(frozen=True)
class Picture:
    """One training picture: what it is and the views of it that are trained."""

    sample: Sample
    bucket: Size
    views: list[View]
    weight: float = 1.0
    """How much its loss counts."""
    of_class: bool = False
    """A picture of the class, which keeps the model from forgetting it: it has no mask."""
    preserved: str | None = None
    """The caption under which the model goes on to answer as the base does; None: under none."""
    repeats: int = 1
    """How many times as often as others it is seen."""
    references: Sequence[Picture] = ()
    """What it is to be made from, view by view."""

    @property
    def shape(self) -> tuple[Size, ...]:
        """Of what a batch has alike."""
        return self.bucket, *(one.bucket for one in self.references)


def plan_pictures(
    samples: Sequence[Sample], resolution: Size, steps: tuple[int, int], *, flip: bool, random_crop: bool, seed: int
) -> list[Picture]:
    """Gives each sample, and what it is made from, its bucket and views; `steps`: as `Facts.bucket_steps`.

    A reference has as many views as its picture, mirrored alike, and where it has the same shape cut alike.
    """
    buckets, out = bucket_sizes(resolution, *steps), []
    bucket_of = cache(lambda size: choose_bucket(size, buckets))  # most sets have few sizes
    seen_at = cache(partial(views, flip=flip, random_crop=random_crop, seed=seed))

    def planned(sample: Sample, index: int) -> Picture:
        size = (sample.width, sample.height)
        bucket = bucket_of(size)
        return Picture(sample, bucket, seen_at(size, bucket, index=index if random_crop else 0))

    for index, sample in enumerate(samples):
        picture, references = planned(sample, index), [planned(one, index) for one in sample.references]
        out.append(replace(picture, references=references) if references else picture)
    return out
