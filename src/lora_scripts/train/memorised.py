"""Whether what a LoRA draws is a copy of what it was trained on: distances between latents. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.train.evidence import Interval

GRID = 8
"""Places of a side that a feature has, whatever the picture's shape."""
STRIP = 1024
"""Pictures whose distances to all are in memory at once."""
CLOSE = 0.8
"""A drawn picture is a copy if a training picture is nearer than this share of the usual distance between a training
picture and its nearest neighbour, and than `MARGIN` of the distance to the nearest held-out picture."""
MARGIN = 0.75
NEARER, SURELY = 0.75, 0.85
"""How far a picture drawn for a trained caption is from the trained picture, as a share of the same for captions held
out, below which training has made copies; and the same where the interval leaves out 1."""


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


def features(latents: Iterable[Tensor]) -> Tensor:
    """[n, c · GRID · GRID] from means of the VAE's posterior, each [c, h, w]: pooled, so that a shift of some pixels
    changes little, while what is where, and in which colour, remains."""
    return torch.stack([F.adaptive_avg_pool2d(latent.float(), GRID).flatten() for latent in latents])


def pairs(drawn: Tensor, train: Tensor, held: Tensor | None = None) -> list[Pair]:
    """For each drawn picture its nearest training picture, the closest pair first; features as rows."""
    drawn, known = _apart(drawn, train, held)
    train, others = known[: len(train)], known[len(train) :]
    usual = spacing(train)
    near, which = torch.cdist(drawn, train).min(1)
    outside = torch.cdist(drawn, others).min(1).values / usual if len(others) else None
    found = [
        Pair(i, int(which[i]), float(near[i] / usual), None if outside is None else float(outside[i]))
        for i in range(len(drawn))
    ]
    return sorted(found, key=lambda pair: pair.distance)


def _apart(drawn: Tensor, train: Tensor, held: Tensor | None) -> tuple[Tensor, Tensor]:
    """The drawn pictures, and the known ones, those held out behind those trained; features as rows.

    What all pictures of the set share, its style, is taken off, and every row then brought to length 1: a drawn picture
    of too much contrast is still a copy.
    """
    known = train if held is None else torch.cat([train, held])
    middle = known.mean(0)
    return F.normalize(drawn - middle, dim=1), F.normalize(known - middle, dim=1)


def spacing(train: Tensor) -> float:
    """The median distance from a training picture to its nearest neighbour; that of all pairs where they are copies."""
    if len(train) < 2:
        return float(train.std() * train.shape[1] ** 0.5)
    nearest, widest = [], 0.0
    for start in range(0, len(train), STRIP):  # of all pairs at once 50,000 pictures would take 10 GB
        apart = torch.cdist(train[start : start + STRIP], train)
        widest = max(widest, apart.max().item())
        apart.diagonal(start).fill_(math.inf)
        nearest.append(apart.min(1).values)
    return float(torch.cat(nearest).median().item() or widest or 1.0)


@dataclass(frozen=True)
class Asked:
    """A drawn picture whose caption describes a known one."""

    drawn: int
    """Row of the drawn ones."""
    known: int
    """Row of the trained ones and, behind them, those held out."""
    trained: bool


@dataclass(frozen=True)
class Found:
    """What drawn pictures say."""

    pairs: Sequence[Pair]
    nearer: Interval | None
    """How much nearer a picture is to the one whose caption it was drawn for if that was trained than if it was held
    out: the logarithm of the ratio, below 0 for nearer; None where too few were held out to say."""

    @property
    def copies(self) -> int:
        return sum(pair.copy for pair in self.pairs)

    @property
    def memorises(self) -> bool:
        """A quarter of the pictures, and at least two, are copies; and training made the difference, where that can be
        told: pictures of a set that is alike are near to one another, held out or not."""
        several = self.copies >= 2 and 4 * self.copies >= len(self.pairs)
        least = SURELY if self.nearer is not None and self.nearer.high < 0 else NEARER
        return several and (self.nearer is None or self.nearer.mean < math.log(least))


def compare(drawn: Tensor, train: Tensor, held: Tensor | None, asked: Sequence[Asked]) -> Found:
    """Features as rows."""
    pictures, known = _apart(drawn, train, held)
    logs: dict[bool, list[float]] = {True: [], False: []}
    for one in asked:
        distance = float((pictures[one.drawn] - known[one.known]).norm())
        logs[one.trained].append(math.log(max(distance, 1e-6)))
    return Found(
        pairs(drawn, train, held), welch(logs[True], logs[False]) if min(map(len, logs.values())) > 1 else None
    )


def welch(one: Sequence[float], other: Sequence[float]) -> Interval:
    """The mean of `one` less that of `other`, with Welch's interval (1947) for few numbers of different spread."""
    from scipy.special import stdtrit

    means, parts = [], []
    for values in (one, other):
        mean = sum(values) / len(values)
        means.append(mean)
        parts.append(max(sum((v - mean) ** 2 for v in values) / (len(values) - 1), 1e-12) / len(values))
    free = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (one, other), strict=True))
    reach = float(stdtrit(free, 0.975)) * math.sqrt(sum(parts))
    apart = means[0] - means[1]
    return Interval(apart, apart - reach, apart + reach)


def verdict(found: Found) -> str:
    """In words, with the rule."""
    rule = f"nearer to a training picture than {CLOSE:g} of the usual distance between two of them"
    if found.pairs and found.pairs[0].outside is not None:
        rule += f", and than {MARGIN:g} of the distance to the nearest held-out picture"
    closest = ", ".join(f"{pair.distance:.2f}" for pair in found.pairs[:3])
    count = f"{found.copies} of {len(found.pairs)} drawn pictures are near copies ({rule}; the closest: {closest})"
    if found.memorises:
        return f"memorised: {count}{_told(found.nearer)}; stop earlier, or train on more pictures"
    alike = "; the pictures of this set are alike, held out or not" if found.copies >= 2 else ""
    return f"no copies: {count}{_told(found.nearer)}{alike}"


def _told(nearer: Interval | None) -> str:
    if nearer is None:
        return "; nothing held out to compare with"
    share, low, high = (f"{math.exp(x):.2f}" for x in (nearer.mean, nearer.low, nearer.high))
    return f"; from the real picture they are {share} as far if that was trained as if not (95 %: {low} to {high})"
