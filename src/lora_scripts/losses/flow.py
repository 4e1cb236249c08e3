"""Noise levels of flow models: which sigma a number u stands for, so that training meets the levels that the sampler
draws with. Pure.

x_t = (1 - sigma) x0 + sigma e (Liu et al. 2022). A sampler of n steps begins with sigma = 1, …, 2/n, 1/n, moves them
towards the noise, and may stretch them so that the last is a number of its own; diffusers'
FlowMatchEulerDiscreteScheduler does the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

Mu = Callable[[int, int], float]
"""(tokens of a picture, steps of the sampler) -> mu."""
STEPS = 50
"""Of a usual sampler, where its levels depend on how many it takes."""


def linear_mu(tokens: int, steps: int, *, low: float, high: float, fewest: int, most: int) -> float:
    """mu on the straight line from `low` at `fewest` tokens to `high` at `most`: larger pictures need more noise (Esser
    et al. 2024, section 5.3.2; the line is diffusers'). `steps` is not asked."""
    return low + (high - low) * (tokens - fewest) / (most - fewest)


def by_resolution(low: float = 0.5, high: float = 1.15, fewest: int = 256, most: int = 4096) -> Mu:
    """`linear_mu` with its numbers."""
    return partial(linear_mu, low=low, high=high, fewest=fewest, most=most)


@dataclass(frozen=True)
class Sigmas:
    """The noise levels of a family's sampler, as data."""

    shift: float = 1.0
    """sigma -> shift * sigma / (1 + (shift - 1) * sigma), the same for every picture (Esser et al. 2024, eq. 23)."""
    mu: Mu | None = None
    """In place of `shift`, which then counts for nothing: another shift for each size of picture."""
    kind: Literal["exponential", "linear"] = "exponential"
    """Whether the shift is e^mu, or mu itself."""
    terminal: float = 0.0
    """The lowest level; 0: no stretching."""
    least: float = 0.0
    """What a sampler's numbers end at before they are shifted, however many there are; 0: 1 / n."""

    def factor(self, tokens: int, steps: int = STEPS) -> float:
        """The shift for a picture of so many tokens."""
        if self.mu is None:
            return self.shift
        mu = self.mu(tokens, steps)
        return math.exp(mu) if self.kind == "exponential" else mu

    def at(self, u: Tensor, tokens: int) -> Tensor:
        """The levels of numbers u in [0, 1], [n], in u's own precision."""
        sigma = self._shifted(u, self.factor(tokens))
        return 1 - (1 - sigma) * (1 - self.terminal) if self.terminal else sigma

    def steps(self, count: int, tokens: int) -> list[float]:
        """The levels that a sampler of so many steps begins each of them with, from 1 down; the 0 at the end is not
        among them."""
        u = torch.linspace(1, self.least or 1 / count, count, dtype=torch.float64)
        sigma = self._shifted(u, self.factor(tokens, count))
        if self.terminal and count > 1:
            sigma = 1 - (1 - sigma) * (1 - self.terminal) / (1 - sigma[-1])
        levels: list[float] = sigma.tolist()
        return levels

    @staticmethod
    def _shifted(sigma: Tensor, factor: float) -> Tensor:
        return factor * sigma / (1 + (factor - 1) * sigma)
