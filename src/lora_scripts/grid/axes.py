"""A grid of pictures, pure: its axes, its cells, and a cell's name, made of all that the picture depends on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lora_scripts.errors import UserError
from lora_scripts.generate.prompts_file import PromptLine

MOST_AXES = 3
VERSION = 1
"""Of the way cells are drawn; another one makes all cells new."""


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """What `lora-scripts grid` was asked for; None and () are looked up in the run's config."""

    output: Path
    base: Path | None = None
    loras: tuple[Path, ...] = ()
    checkpoints: tuple[str, ...] = ()
    """Folders of runs, files, or patterns with *."""
    strengths: tuple[float, ...] = (0.0, 0.4, 0.8, 1.0)
    prompts: Path | None = None
    seeds: tuple[int, ...] = (42,)
    cfgs: tuple[float, ...] = (7.0,)
    negative_prompt: str = ""
    steps: int = 20
    size: tuple[int, int] | None = None
    scheduler: str | None = None
    vae: Path | None = None
    data: Path | None = None
    """Training pictures, to measure with."""
    measures: bool = True
    device: str = "auto"
    precision: str = "auto"
    prediction: Literal["epsilon", "v", "flow"] = "epsilon"
    zero_terminal_snr: bool = False
    clip_skip: int = 1


@dataclass(frozen=True)
class Cell:
    """One picture: all that it depends on."""

    base: str
    """SHA-256, of a folder its path."""
    vae: str
    loras: tuple[tuple[str, float], ...]
    """SHA-256 of each file and its strength, innermost first; none at strength 0."""
    prompt: str
    negative: str
    seed: int
    cfg: float
    steps: int
    size: tuple[int, int]
    scheduler: str
    settings: tuple[object, ...]
    """Precision, prediction, zero-terminal SNR, clip skip."""

    @property
    def digest(self) -> str:
        """The name of its file, 20 hexadecimal digits."""
        text = json.dumps([VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


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
    points: Mapping[tuple[int, ...], Point]

    @property
    def blocks(self) -> Axis | None:
        return self.axes[0] if len(self.axes) == 3 else None

    @property
    def down(self) -> Axis | None:
        return self.axes[-2] if len(self.axes) > 1 else None

    @property
    def across(self) -> Axis:
        return self.axes[-1]

    def rows(self) -> Iterator[tuple[str | None, list[tuple[str | None, list[tuple[int, ...]]]]]]:
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


def unique(cells: Sequence[Cell], order: Callable[[Cell], object]) -> list[Cell]:
    """Each once, those of one `order` together."""
    found = {cell.digest: cell for cell in cells}
    groups: dict[object, list[Cell]] = {}
    for cell in found.values():
        groups.setdefault(order(cell), []).append(cell)
    return [cell for group in groups.values() for cell in group]


def fitting(line: PromptLine, file: Path) -> PromptLine:
    """A line of the prompts' file; UserError for what the grid's axes say."""
    if line.seed is not None or line.cfg is not None:
        word = "--d" if line.seed is not None else "--l"
        raise UserError(
            f"{word} in {line.prompt!r}: seeds and cfgs are axes of the grid", file=file, hint="use --seeds and --cfgs"
        )
    if "<lora:" in line.prompt:
        raise UserError(
            f"{line.prompt!r} calls a LoRA, but the grid puts them on itself", file=file, hint="use --loras"
        )
    return line
