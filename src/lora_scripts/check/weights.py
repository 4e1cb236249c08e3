"""Weights of the two judgements of sharpness, as fitted by benchmarks/tune_sharpness.py."""

from __future__ import annotations

from typing import NamedTuple


class Weights(NamedTuple):
    """Logistic regression: log odds = bias + factors . features."""

    bias: float
    factors: tuple[float, ...]


FOCUS = Weights(8.971, (-9.422, -5.487, -3.248))
DETAIL = Weights(-0.666, (-6.451, -4.271, -1.391, -1.348, 3.247, 5.004, 3.603, -1.807))
