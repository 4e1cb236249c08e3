"""At which strength a LoRA is best worn, by what was measured of pictures at several. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

ENOUGH = 0.95
"""Of the style at full strength: what a weaker LoRA must show to be recommended."""
LITTLE = 0.05
"""Of the style at full strength: below it what weaker ones show is chance. Pictures of a LoRA that had learnt nothing
scatter by 0.01."""
STEP = 0.1
"""Strengths are recommended in such steps."""


@dataclass(frozen=True)
class Point:
    """What pictures at one strength show, on average."""

    strength: float
    style: float
    """0: as far from the training pictures as the base's; 1: as near as these are to one another."""
    content: float
    """How much of the base's own composition is left, 1: all."""


def averaged(rows: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over prompts of rows of the same strengths."""
    return [
        Point(points[0].strength, fmean(p.style for p in points), fmean(p.content for p in points))
        for points in zip(*rows, strict=True)
    ]


def at(points: Sequence[Point], strength: float) -> Point:
    """Between the measured strengths, on straight lines; `points` by rising strength."""
    for low, high in pairwise(points):
        if low.strength <= strength <= high.strength:
            share = (strength - low.strength) / (high.strength - low.strength)
            style = low.style + share * (high.style - low.style)
            return Point(strength, style, low.content + share * (high.content - low.content))
    return min(points, key=lambda p: abs(p.strength - strength))


def recommended(points: Sequence[Point]) -> Point:
    """The weakest strength that shows enough of the style of the full one; the full one where it shows little."""
    full = points[-1]
    if full.style < LITTLE:
        return full
    steps = round((full.strength - points[0].strength) / STEP)
    for i in range(1, steps):
        point = at(points, round(points[0].strength + i * STEP, 3))
        if point.style >= ENOUGH * full.style:
            return point
    return full
