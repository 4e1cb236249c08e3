"""Weights of the judgements of sharpness, as fitted by benchmarks/tune_sharpness.py."""

from __future__ import annotations

from typing import NamedTuple


class Weights(NamedTuple):
    """Logistic regression: log odds = bias + factors . features."""

    bias: float
    factors: tuple[float, ...]


FOCUS = Weights(8.301, (-7.690, -5.433, -4.264))
DETAIL = Weights(-2.281, (-7.204, -4.258, -1.509, -0.295, 3.562, 5.309, 3.821, -1.531))
NAME = Weights(9.016, (-4.341, -3.714, -3.539, -0.185, 0.229, -5.494, 0.997, -1.088, -2.528, -2.401, -1.099))
