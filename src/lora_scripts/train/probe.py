"""Losses that can be compared: of the same pictures, at the same noise and the same noise levels, whenever taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lora_scripts.data.buckets import Size
from lora_scripts.families.base import Batch, stacked
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.noise import STEPS, Draws, at_level, middle
from lora_scripts.train.feed import Feed, generator, place_of


@dataclass(frozen=True)
class Range:
    """Noise levels first … last in `strata` parts of equal length, of each of which one is drawn."""

    strata: int
    first: int = 0
    last: int = 999

    def draw(self, part: int, g: torch.Generator, levels: int | None) -> Tensor:
        """A number u of the part (0 … strata - 1); `levels` as in `losses.noise.Timesteps.draw`."""
        share = torch.rand((), generator=g, dtype=torch.float64).item()
        return self._at((part + share) / self.strata, levels)

    def middle(self, part: int, levels: int | None) -> Tensor:
        """The u in the middle of a part."""
        return self._at(Fraction(2 * part + 1, 2 * self.strata), levels)

    def _at(self, share: float | Fraction, levels: int | None) -> Tensor:
        count = self.last - self.first + 1
        if levels is None:
            return torch.tensor(float((self.first + share * count) / STEPS), dtype=torch.float64)
        first = at_level(self.first, levels)
        count = at_level(self.last + 1, levels) - first
        return middle(torch.tensor(first + min(int(share * count), count - 1)), levels)


@dataclass(frozen=True)
class Probe:
    """Some pictures of a feed, each in its first view with its own caption, at `levels.strata` fixed draws.

    What is drawn for a picture is a function of (seed, the picture's digest, the stratum).
    """

    feed: Feed
    indices: Sequence[int]
    objective: Objective
    levels: Range
    seed: int
    batch: int
    """Latents at a time."""
    parts: Sequence[int] | None = None
    """Of the strata, that are measured; None: all."""
    common: bool = False
    """The same draws for every picture, in the middle of the strata: so that pictures compare with one another."""

    @torch.no_grad()
    def losses(self) -> Tensor:
        """[pictures, strata (or parts)] float32, as the model stands.

        Draws nothing from torch's own generator.
        """
        losses = torch.zeros(len(self.indices), len(self.columns))
        for places in self._batches():
            batch, draws = self._ready(places)
            each = self.feed.family.losses(batch, self.objective, draws).float().cpu()
            for (row, part), value in zip(places, each, strict=True):
                losses[row, self.columns.index(part)] = value
        return losses

    @property
    def columns(self) -> Sequence[int]:
        """The strata that are measured."""
        return range(self.levels.strata) if self.parts is None else self.parts

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """(row, stratum), each batch of one shape."""
        by_shape: dict[tuple[Size, ...], list[tuple[int, int]]] = {}
        for row, index in enumerate(self.indices):
            places = by_shape.setdefault(self.feed.pictures[index].shape, [])
            places += [(row, part) for part in self.columns]
        for places in by_shape.values():
            yield from (places[i : i + self.batch] for i in range(0, len(places), self.batch))

    def _ready(self, places: Sequence[tuple[int, int]]) -> tuple[Batch, Draws]:
        pictures = [self.feed.pictures[self.indices[row]] for row, _ in places]
        latents = [self.feed.encoded.latents(self.indices[row]) for row, _ in places]
        times, noises, posteriors = [], [], []
        many = self.feed.family.levels(self.objective)
        for picture, (_, part), moments in zip(pictures, places, latents, strict=True):
            g = generator(f"probe/{self.seed}/{'' if self.common else picture.sample.digest}/{part}")
            times.append(self.levels.middle(part, many) if self.common else self.levels.draw(part, g, many))
            noises.append(torch.randn(moments["mean"].shape, generator=g))
            posteriors.append(torch.randn(moments["mean"].shape, generator=g))
        texts = [picture.sample.caption for picture in pictures]
        batch = Batch(
            stacked(latents),
            texts,
            self.feed.texts_of([(self.indices[row], 0, text) for (row, _), text in zip(places, texts, strict=True)]),
            [picture.sample.name for picture in pictures],
            [],
            places=torch.stack([place_of(p.sample, p.views[0]).numbers() for p in pictures]),
        )
        return batch, Draws(torch.stack(times), torch.stack(noises), torch.stack(posteriors))
