"""What a model of texts is fed: sequences of tokens, and batches of them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import overload

import torch
from torch import Tensor

from lora_scripts.losses.language import IGNORED


@dataclass(frozen=True)
class Example:
    """One sequence for the model."""

    ids: list[int]
    trained: list[bool]
    """For each token, whether the model is to say it. The first one is asked of nobody: there is nothing before it."""

    @property
    def count(self) -> int:
        """Tokens that are trained."""
        return sum(self.trained[1:])


class Examples(Sequence[Example]):
    """Many examples in little memory, four bytes and one flag for each token, with the place of the record of each."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self._ids, self._trained, self._ends = array("I"), bytearray(), array("Q")

    def add(self, example: Example, place: str) -> None:
        self._ids.extend(example.ids)
        self._trained.extend(example.trained)
        self._ends.append(len(self._ids))
        self.places.append(place)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, end = self._start(index), self._ends[index]
        return Example(self._ids[start:end].tolist(), [bool(flag) for flag in self._trained[start:end]])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [end - self._start(i) for i, end in enumerate(self._ends)]

    @property
    def digest(self) -> str:
        """SHA-256 of all tokens and what is trained of them."""
        whole = hashlib.sha256(self._ids.tobytes())
        whole.update(bytes(self._trained) + self._ends.tobytes())
        return whole.hexdigest()

    def _start(self, index: int) -> int:
        return self._ends[index - 1] if index else 0


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """Tokens of each example."""
    return examples.lengths if isinstance(examples, Examples) else [len(example.ids) for example in examples]


def marked(example: Example, decode: Callable[[Sequence[int]], str], before: str = "⟦", behind: str = "⟧") -> str:
    """The text of an example with what is trained between two marks, for a person to look at before the first step."""
    pairs = zip(example.ids, example.trained, strict=True)
    text = ""
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        words = decode([token for token, _ in run])
        text += f"{before}{words}{behind}" if trained else words
    return text


@dataclass(frozen=True)
class TextBatch:
    """n examples, ready for the loss."""

    ids: Tensor
    """[rows, width] int64"""
    targets: Tensor
    """[rows, width] int64: the token that each place should say, IGNORED where none is trained"""
    positions: Tensor
    """[rows, width] int64: they begin anew with each example"""
    mask: Tensor | None
    """[rows, width] int64, 1 for tokens and 0 for padding; None for packed rows, which the positions keep apart"""
    names: Sequence[str]
    """n places of records, for messages"""

    def to(self, device: torch.device) -> TextBatch:
        mask = None if self.mask is None else self.mask.to(device)
        return TextBatch(self.ids.to(device), self.targets.to(device), self.positions.to(device), mask, self.names)


def padded(examples: Sequence[Example], names: Sequence[str] = ()) -> TextBatch:
    """A row for each example, as wide as the longest; what is padding is told by length, never by a token."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    targets, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length], targets[row, :length] = _tensors(example)
        mask[row, :length] = 1
    return TextBatch(ids, targets, torch.arange(width).expand(len(examples), -1), mask, names)


def packed(examples: Sequence[Example], width: int, names: Sequence[str] = ()) -> TextBatch:
    """The examples one behind the other in as few rows of at most `width` as first-fit finds, the longest first.

    The rest of a row is padding, a sequence of its own. An example that is longer than `width` has a row of its own.
    """
    rows = fill_rows([len(example.ids) for example in examples], width)
    width = max(sum(len(examples[i].ids) for i in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    targets, positions = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        at = 0
        for i in row:
            length = len(examples[i].ids)
            ids[number, at : at + length], targets[number, at : at + length] = _tensors(examples[i])
            positions[number, at : at + length] = torch.arange(length)
            at += length
        positions[number, at:] = torch.arange(width - at)
    return TextBatch(ids, targets, positions, None, names)


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Indices of what goes into each row: first-fit decreasing (Johnson 1973), at most 11/9 of the fewest rows."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((number for number, rest in enumerate(room) if rest >= lengths[i]), None)
        if row is None:
            rows.append([i])
            room.append(width - lengths[i])
        else:
            rows[row].append(i)
            room[row] -= lengths[i]
    return rows


def _tensors(example: Example) -> tuple[Tensor, Tensor]:
    """Ids, and for each place the next token if that is trained."""
    ids = torch.tensor(example.ids, dtype=torch.long)
    trained = torch.tensor([*example.trained[1:], False])
    return ids, torch.where(trained, ids.roll(-1), IGNORED)
