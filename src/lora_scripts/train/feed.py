"""What the loop is fed: cached latents and captions, put together into batches that are functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from lora_scripts.data.buckets import View
from lora_scripts.data.cache import Cache
from lora_scripts.data.loader import caption_for, draw, epoch_batches, pieces, quantile
from lora_scripts.data.scan import Sample
from lora_scripts.families.base import Batch, PictureFamily, Place, stacked
from lora_scripts.seeds import seed_of
from lora_scripts.train.ahead import ahead
from lora_scripts.train.encoded import Encoded, Masks, Read
from lora_scripts.train.planned import Picture


@dataclass(frozen=True)
class Settings:
    """The part of the config that decides what is fed."""

    batch_size: int
    accumulation: int
    repeats: int
    seed: int
    caption_dropout: float
    shuffle_tags: bool
    keep_tags: int
    tag_dropout: float = 0.0
    preserve: float = 0.0
    """How much pictures count that are shown a second time, under the caption that is `preserved`; 0: they are not,"""
    preserve_every: int = 1
    """and in every so many steps."""
    masks: Masks | None = None
    """Where there are any."""
    transparency: bool = True
    """As of `Encoded`."""


@dataclass(frozen=True)
class Drawn:
    """One place of a batch, as chance has it."""

    picture: int
    view: int
    caption: str
    quantile: float
    """Of its noise level."""
    place: str
    """seed/epoch/position/index: what the rest of its randomness is a function of"""
    preserved: bool = False
    """Beside what is trained, to keep the base's answer."""


@dataclass
class Feed:
    """Batches for a family. `fill` computes what can be cached and is not; `steps` reads it, a step ahead."""

    family: PictureFamily
    pictures: list[Picture]
    settings: Settings
    cache_text: bool
    encoded: Encoded = field(init=False, repr=False)
    times: list[int] = field(init=False, repr=False)
    """How often each picture is seen in an epoch,"""
    seen: int = field(init=False)
    """and all of them together."""

    def __post_init__(self) -> None:
        masks, transparency = self.settings.masks, self.settings.transparency
        self.encoded = Encoded(
            self.family,
            self.pictures,
            masks,
            texts=self.cache_text,
            transparency=transparency,
            dropped=self.settings.caption_dropout > 0,
        )
        self.times = [self.settings.repeats * picture.repeats for picture in self.pictures]
        self.seen = sum(self.times)

    def fill(self, cache: Cache, progress: Callable[[str, int, int], None]) -> None:
        """As `Encoded.fill`."""
        self.encoded.fill(cache, progress)

    def batches(self, epoch: int) -> list[list[int]]:
        s, shapes = self.settings, [p.shape for p in self.pictures]
        return epoch_batches(shapes, batch_size=s.batch_size, repeats=self.times, seed=s.seed, epoch=epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; a window of accumulated batches does not reach into the next epoch."""
        return -(-len(self.batches(0)) // self.settings.accumulation)

    def steps(self, first: int, total: int, most: int | None = None) -> Iterator[tuple[int, list[Batch]]]:
        """(epoch, the batches of one optimizer step) for steps first … total - 1; while one is taken, what the next
        needs is read.

        With `most` each batch comes in pieces of at most so many pictures: the same pictures, drawn alike.
        """
        for (epoch, drawn), read in ahead(self._draws(first, total, most), self._read):
            yield epoch, [self._batch(rows, read) for rows in drawn]

    def _draws(self, first: int, total: int, most: int | None) -> Iterator[tuple[int, list[list[Drawn]]]]:
        per_epoch = self.steps_per_epoch
        for epoch in range(first // per_epoch, -(-total // per_epoch)):
            batches, size = self.batches(epoch), self.settings.accumulation
            skip = first - epoch * per_epoch if epoch == first // per_epoch else 0
            position = sum(len(b) for b in batches[: skip * size])
            for step, window in islice(enumerate(range(0, len(batches), size), epoch * per_epoch), skip, None):
                ready = list[list[Drawn]]()
                for indices in batches[window : window + size]:
                    for piece in pieces(indices, most):
                        ready.append([self._draw(epoch, at, index) for at, index in enumerate(piece, position)])
                        position += len(piece)
                yield epoch, [*ready, *self._preserved(ready, step)]

    def _draw(self, epoch: int, position: int, index: int) -> Drawn:
        s, picture = self.settings, self.pictures[index]
        views = len(picture.views)
        drawn = draw(s.seed, epoch, position, index, variants=views, caption_dropout=s.caption_dropout)
        place = f"{s.seed}/{epoch}/{position}/{index}"
        caption = "" if drawn.drop_caption else picture.sample.caption
        caption = caption_for(caption, shuffle=s.shuffle_tags, keep=s.keep_tags, rng_key=place, dropout=s.tag_dropout)
        level = quantile(s.seed, epoch * self.seen + position)
        return Drawn(index, drawn.variant, caption, level, place)

    def _preserved(self, ready: Sequence[Sequence[Drawn]], step: int) -> Iterator[list[Drawn]]:
        """What is trained in a step as it is shown a second time, at noise of its own; nothing of some steps."""
        if not self.settings.preserve or step % self.settings.preserve_every:
            return
        for rows in ready:
            known = [(row, self.pictures[row.picture].preserved) for row in rows]
            if again := [
                replace(row, caption=caption, place=f"preserved/{row.place}", preserved=True)
                for row, caption in known
                if caption is not None
            ]:
                yield again

    def _read(self, step: tuple[int, list[list[Drawn]]]) -> Read:
        return self.encoded.read((row.picture, row.view, row.caption) for rows in step[1] for row in rows)

    def _batch(self, rows: Sequence[Drawn], read: Read) -> Batch:
        pictures = [self.pictures[row.picture] for row in rows]
        s, preserved = self.settings, rows[0].preserved
        captions = [row.caption for row in rows]
        weights = [s.preserve if preserved else p.weight for p in pictures]
        masked = s.masks is not None and not preserved
        masks = [self.encoded.mask(row.picture, row.view, read) for row in rows] if masked else []
        return Batch(
            stacked([self.encoded.latents(row.picture, row.view, read) for row in rows]),
            captions,
            self.texts_of([(row.picture, row.view, row.caption) for row in rows], read),
            [p.sample.name for p in pictures],
            [generator(f"noise/{row.place}") for row in rows],
            places=torch.stack([_numbers(p, row.view) for p, row in zip(pictures, rows, strict=True)]),
            masks=torch.stack(masks) if masks else None,
            weights=torch.tensor(weights) if set(weights) != {1.0} else None,
            quantiles=torch.tensor([row.quantile for row in rows], dtype=torch.float64),
            preserved=preserved,
        )

    def texts_of(self, rows: Iterable[tuple[int, int, str]], read: Read | None = None) -> dict[str, Tensor] | None:
        """The encoded captions of (picture, view, caption), from the cache or encoded now; None where the text encoder
        is trained."""
        return self.encoded.told([self.encoded.said(*row) for row in rows], read) if self.cache_text else None


def place_of(sample: Sample, view: View) -> Place:
    """Where in its picture, mirrored as the view is, a view lies."""
    left = view.scaled[0] - view.bucket[0] - view.left if view.flip else view.left
    return Place((sample.width, sample.height), (left, view.top), view.bucket)


def _numbers(picture: Picture, view: int) -> Tensor:
    return place_of(picture.sample, picture.views[view]).numbers()


def generator(key: str) -> torch.Generator:
    """A CPU generator whose state is a function of a text, the same on every machine."""
    return torch.Generator().manual_seed(seed_of(key))
