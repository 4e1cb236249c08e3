"""Whether a model keeps apart what lies in one row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEAK = 1e-5
"""The largest change of a logit, as a share of their spread, that counts as none."""


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
