"""The axes of a grid, pure: what differs from picture to picture, and the choices at each place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_scripts.errors import UserError

MOST_AXES = 3

Place = tuple[int, ...]
"""Where a picture stands: a number on each axis."""


@dataclass(frozen=True)
class Axis:
    """What differs from picture to picture."""

    name: str
    """"prompt", "LoRA", "checkpoint", "seed", "cfg" or "strength"."""
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One choice on every axis, by its number: what a cell is made from."""

    prompt: int = 0
    lora: int = 0
    checkpoint: int = 0
    seed: int = 0
    cfg: int = 0
    strength: int = 0


NAMES = ("prompt", "lora", "checkpoint", "seed", "cfg", "strength")
"""From the outermost to the innermost: the last axis that has several values goes across, the one before it down."""
TITLES = {"lora": "LoRA"}


@dataclass(frozen=True)
class Plan:
    """The axes that have several values, and the point at each place of the grid."""

    axes: tuple[Axis, ...]
    points: Mapping[Place, Point]

    @property
    def blocks(self) -> Axis | None:
        return self.axes[0] if len(self.axes) == 3 else None

    @property
    def down(self) -> Axis | None:
        return self.axes[-2] if len(self.axes) > 1 else None

    @property
    def across(self) -> Axis:
        return self.axes[-1]

    def rows(self) -> Iterator[tuple[str | None, list[tuple[str | None, list[Place]]]]]:
        """For each block its label and its rows; of each row the label and the places."""
        for block in range(len(self.blocks.labels) if self.blocks else 1):
            rows = []
            for row in range(len(self.down.labels) if self.down else 1):
                lead = ((block,) if self.blocks else ()) + ((row,) if self.down else ())
                places = [(*lead, column) for column in range(len(self.across.labels))]
                rows.append((self.down.labels[row] if self.down else None, places))
            yield (self.blocks.labels[block] if self.blocks else None), rows


def plan(labels: Mapping[str, Sequence[str]]) -> Plan:
    """The grid over `labels`: name of each axis (of `NAMES`) -> its values. UserError for none, or more than three, of
    several values."""
    several = [name for name in NAMES if len(labels[name]) > 1]
    words = ", ".join(f"{len(labels[name])} {plural(name)}" for name in several)
    if len(several) > MOST_AXES:
        hint = f"give one value for {len(several) - MOST_AXES} of them, or draw a grid for each"
        raise UserError(f"a grid has at most three axes, not {len(several)}: {words}", hint=hint)
    if not several:
        raise UserError("there is nothing to compare", hint="give two or more --strengths, --seeds, --checkpoints, …")
    axes = tuple(Axis(TITLES.get(name, name), tuple(labels[name])) for name in several)
    points = {
        place: Point(**dict(zip(several, place, strict=True)))
        for place in itertools.product(*(range(len(labels[name])) for name in several))
    }
    return Plan(axes, points)


def plural(name: str) -> str:
    """ "strengths", "LoRAs"."""
    return TITLES.get(name, name) + "s"
