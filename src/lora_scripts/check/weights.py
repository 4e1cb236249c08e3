"""Weights of the judgements of sharpness, as fitted by benchmarks/tune_sharpness.py."""

from __future__ import annotations

from typing import NamedTuple


class Weights(NamedTuple):
    """Logistic regression: log odds = bias + factors . features."""

    bias: float
    factors: tuple[float, ...]


FOCUS = Weights(9.217, (-8.482, -5.649, -4.026))
DETAIL = Weights(-2.473, (-7.248, -4.410, -1.341, -0.250, 3.618, 5.306, 3.856, -1.518))
NAME = Weights(7.865, (-4.023, -3.903, -3.502, -0.788, -1.207, -4.762, 1.522, -1.384, -3.132, -2.146, -1.145))
