"""Sequences side by side: packed into few rows where the model keeps them apart, else each in a row of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_scripts.families.causal_lm.encode import Example
from lora_scripts.losses.language import IGNORED

LEAK = 1e-5
"""The largest change of a logit, as a share of their spread, that counts as none."""


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


@torch.no_grad()
def leak(logits: Callable[[Tensor, Tensor], Tensor], vocabulary: int) -> float:
    """How far one sequence changes what is said of another in the same row, and how far packed is from alone.

    `logits(ids, positions)` -> [rows, width, vocabulary]. The larger of two differences, as a share of the logits' own
    spread: of the second sequence when the first is another one, which is exact in any precision, since nothing else
    changes; and, in float32 only, of the second sequence packed and alone, where rounding is below LEAK.
    """
    draw = torch.Generator().manual_seed(0)
    first, other, second = torch.randint(vocabulary, (3, 24), generator=draw)
    positions = torch.arange(24).repeat(2)[None]
    one, two = (logits(torch.cat([begin, second])[None], positions)[0, 24:].float() for begin in (first, other))
    spread = one.std().clamp(min=1e-6)
    worst = (one - two).abs().max() / spread
    precise = logits(second[None, :2], positions[:, :2]).dtype == torch.float32
    if precise:
        alone = logits(second[None], positions[:, :24])[0].float()
        worst = torch.maximum(worst, (one - alone).abs().max() / spread)
    return float(worst)
