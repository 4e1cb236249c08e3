"""Curves that come down to a level, and medians with an interval: the arithmetic of `time_to_loss.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence


def level_of(base: float, low: float, share: float) -> float:
    """A loss that lies a share of the way from the base's down to the lowest."""
    return low + (1 - share) * (base - low)  # of all of the way it is the lowest to the bit, which its own run reaches


def reached(points: Sequence[tuple[float, float]], level: float) -> float:
    """Where a curve of (time, loss) first comes down to the level, between points a straight line; inf for never."""
    (before, above), *rest = points
    if above <= level:
        return before
    for at, loss in rest:
        if loss <= level:
            return before + (at - before) * (above - level) / (above - loss)
        before, above = at, loss
    return math.inf


def interval(values: Sequence[float]) -> tuple[float, float]:
    """That of the median, by order statistics: the shortest from the k-th of the lowest to the k-th of the highest that
    holds it with 95 % or more (binomial, 1/2); least and most where there are too few values for that."""
    ordered, n, outside, k = sorted(values), len(values), 0.0, 0
    for rank in range(n // 2):
        outside += 2 * math.comb(n, rank) / 2**n
        if outside > 0.05:
            break
        k = rank
    return ordered[k], ordered[n - 1 - k]
