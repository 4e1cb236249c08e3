"""Noise levels of flow models: which sigma a number u stands for, so that training meets the levels that the sampler
draws with, and how much each counts. Pure.

x_t = (1 - sigma) x0 + sigma e (Liu et al. 2022). A sampler of n steps begins with sigma = 1, …, 2/n, 1/n, moves them
towards the noise, and may stretch them so that the last is a number of its own; diffusers'
FlowMatchEulerDiscreteScheduler does the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["none", "sigma_sqrt", "cosmap", "bell", "inverse_loss"]
Mu = Callable[[int, int], float]
"""(tokens of a picture, steps of the sampler) -> mu."""
STEPS = 50
"""Of a usual sampler, where its levels depend on how many it takes."""


def by_resolution(low: float = 0.5, high: float = 1.15, fewest: int = 256, most: int = 4096) -> Mu:
    """mu on the straight line from `low` at `fewest` tokens to `high` at `most`, however many steps: larger pictures
    need more noise (Esser et al. 2024, section 5.3.2; the line is diffusers')."""
    return lambda tokens, steps: low + (high - low) * (tokens - fewest) / (most - fewest)


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


_LOWEST = 1 / 1000
"""Of the levels that sigma_sqrt tells apart, as of diffusers' thousand: of 0 its weight has no end."""
_BELL = math.sqrt(math.pi / 2) * math.erf(0.5**0.5) - math.exp(-0.5)
"""The mean of the bell over all levels."""
_INVERSE_LOSS = {0: 0.42, 0.1: 0.73, 0.3: 0.72, 0.5: 0.91, 0.8: 1.44, 0.88: 1.54, 0.95: 1.42, 1: 0.95}
"""Level -> weight, straight lines between: fitted to the thousand numbers that ai-toolkit measured on Flex.1-alpha; 1.1
% away from them in the mean square, and at most 5.5 %, at both ends."""


def flow_weight(sigma: Tensor, weighting: Weighting) -> Tensor:
    """How much the loss counts at levels [n], [n].

    sigma_sqrt: 1 / sigma^2; cosmap: 2 / (pi (1 - 2 sigma + 2 sigma^2)), the density of CosMap (Esser et al. 2024,
    section 3.1); both as diffusers has them. bell: exp(-2 (sigma - 1/2)^2), moved to 0 at both ends; inverse_loss:
    about 1 over a base's own loss at each level; both of mean 1, as ai-toolkit has them.
    """
    if weighting == "sigma_sqrt":
        return sigma.clamp(min=_LOWEST) ** -2
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))
    if weighting == "bell":
        return (torch.exp(-2 * (sigma - 0.5).square()) - math.exp(-0.5)) / _BELL
    if weighting == "inverse_loss":
        return _on_lines(sigma, _INVERSE_LOSS)
    return torch.ones_like(sigma)


def _on_lines(x: Tensor, points: Mapping[float, float]) -> Tensor:
    """Straight lines between points, as a sum of bends: no table has to be on the device."""
    slope, y = 0.0, torch.full_like(x, next(iter(points.values())))
    for (left, low), (right, high) in pairwise(points.items()):
        steeper = (high - low) / (right - left) - slope
        y, slope = y + steeper * (x - left).clamp(min=0), slope + steeper
    return y
