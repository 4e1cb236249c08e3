"""Whether what a LoRA draws is a copy of what it was trained on: distances between latents. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 8
"""Places of a side that a feature has, whatever the picture's shape."""
CLOSE = 0.8
"""A drawn picture is a copy if a training picture is nearer than this share of the usual distance between a training
picture and its nearest neighbour, and than `MARGIN` of the distance to the nearest held-out picture."""
MARGIN = 0.75


@dataclass(frozen=True)
class Pair:
    """A drawn picture and the training picture nearest to it."""

    drawn: int
    train: int
    distance: float
    """In units of the usual distance from a training picture to its nearest neighbour among the others."""
    outside: float | None
    """The same for the nearest held-out picture; None without any."""

    @property
    def copy(self) -> bool:
        """That it counts as a copy."""
        return self.distance < CLOSE and (self.outside is None or self.distance < MARGIN * self.outside)


def features(latents: Sequence[Tensor]) -> Tensor:
    """[n, c · GRID · GRID] from means of the VAE's posterior, each [c, h, w]: pooled, so that a shift of some pixels
    changes little, while what is where, and in which colour, remains."""
    return torch.stack([F.adaptive_avg_pool2d(latent.float(), GRID).flatten() for latent in latents])


def pairs(drawn: Tensor, train: Tensor, held: Tensor | None = None) -> list[Pair]:
    """For each drawn picture its nearest training picture, the closest pair first; features as rows.

    What all pictures of the set share, its style, is taken off first, and every row then brought to length 1: a drawn
    picture of too much contrast is still a copy.
    """
    known = train if held is None or not len(held) else torch.cat([train, held])
    drawn, train, *others = (F.normalize(x - known.mean(0), dim=1) for x in (drawn, train, known[len(train) :]))
    usual = spacing(train)
    near, which = torch.cdist(drawn, train).min(1)
    outside = torch.cdist(drawn, others[0]).min(1).values / usual if len(others[0]) else None
    found = [
        Pair(i, int(which[i]), float(near[i] / usual), None if outside is None else float(outside[i]))
        for i in range(len(drawn))
    ]
    return sorted(found, key=lambda pair: pair.distance)


def spacing(train: Tensor) -> float:
    """The median distance from a training picture to its nearest neighbour; that of all pairs where they are copies."""
    if len(train) < 2:
        return float(train.std() * train.shape[1] ** 0.5)
    apart = torch.cdist(train, train)
    nearest = (apart + torch.eye(len(train)) * apart.max()).min(1).values.median().item()
    return float(nearest or apart.max().item() or 1.0)


def memorises(found: Sequence[Pair]) -> bool:
    """The rule: a quarter of the drawn pictures, and at least two, are copies."""
    copies = sum(pair.copy for pair in found)
    return copies >= 2 and 4 * copies >= len(found)


def verdict(found: Sequence[Pair]) -> str:
    """In words, with the rule."""
    rule = f"nearer to a training picture than {CLOSE:g} of the usual distance between two of them"
    if found and found[0].outside is not None:
        rule += f", and than {MARGIN:g} of the distance to the nearest held-out picture"
    closest = ", ".join(f"{pair.distance:.2f}" for pair in found[:3])
    count = f"{sum(pair.copy for pair in found)} of {len(found)} drawn pictures are near copies ({rule}; "
    count += f"the closest: {closest})"
    return f"memorised: {count}; stop earlier, or train on more pictures" if memorises(found) else f"no copies: {count}"
