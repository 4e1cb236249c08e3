"""What the loop is fed of texts: encoded records, put together into batches that are functions of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from lora_scripts.data.loader import epoch_batches, pieces
from lora_scripts.families.sequences import Example, TextBatch, lengths_of, packed, padded
from lora_scripts.families.texts import TextFamily

ALIKE = 8
"""Without packing: batches whose records are drawn from among those of about their length."""


@dataclass(frozen=True)
class TextSettings:
    """The part of the config that decides what is fed."""

    batch_size: int
    """Records of a batch, packed or not: packing changes how they lie in memory, not what a step learns from."""
    accumulation: int
    repeats: int
    seed: int
    width: int
    """Tokens of a row: max_length."""
    packing: bool


@dataclass(frozen=True)
class TextFeed:
    """Batches of a data set."""

    examples: Sequence[Example]
    places: Sequence[str]
    """Of each example: the file and the line of its record."""
    settings: TextSettings

    def batches(self, epoch: int) -> list[list[int]]:
        """The examples of each batch of an epoch: any, if they are packed; else such as are of about one length."""
        s = self.settings
        group = [0] * len(self.examples)
        if not s.packing:
            lengths = lengths_of(self.examples)
            by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
            for rank, index in enumerate(by_length):
                group[index] = rank // (ALIKE * s.batch_size)
        times = [s.repeats] * len(group)
        return epoch_batches(group, batch_size=s.batch_size, repeats=times, seed=s.seed, epoch=epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; a window of accumulated batches does not reach into the next epoch."""
        return -(-len(self.batches(0)) // self.settings.accumulation)

    def steps(self, first: int, total: int, most: int | None = None) -> Iterator[tuple[int, list[TextBatch]]]:
        """(epoch, the batches of one optimizer step) for steps first … total - 1, in pieces of at most `most`."""
        per_epoch, size = self.steps_per_epoch, self.settings.accumulation
        for epoch in range(first // per_epoch, -(-total // per_epoch)):
            batches = self.batches(epoch)
            skip = first - epoch * per_epoch if epoch == first // per_epoch else 0
            for window in islice(range(0, len(batches), size), skip, None):
                chosen = [piece for whole in batches[window : window + size] for piece in pieces(whole, most)]
                yield epoch, [self.batch(indices) for indices in chosen]

    def batch(self, indices: Sequence[int]) -> TextBatch:
        """These examples, packed if the settings say so."""
        chosen, names = [self.examples[i] for i in indices], [self.places[i] for i in indices]
        return packed(chosen, self.settings.width, names) if self.settings.packing else padded(chosen, names)


@dataclass(frozen=True)
class TextProbe:
    """The losses of some examples, as they can be compared whenever taken."""

    model: TextFamily
    examples: Sequence[Example]
    batch: int

    def losses(self) -> Tensor:
        """[examples, 1] float32: the mean loss of the trained tokens of each."""
        out = torch.zeros(len(self.examples), 1)
        lengths = lengths_of(self.examples)
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            batch = padded([self.examples[i] for i in chosen])
            each = self.model.losses(batch).cpu().sum(1)
            for i, value in zip(chosen, each, strict=True):
                out[i, 0] = value / max(1, self.examples[i].count)
        return out
