"""One self-contained HTML page of a grid: pictures in rows and columns, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from lora_scripts.report.environment import fill


@dataclass(frozen=True)
class ShownCell:
    """A picture at its place."""

    image: Image
    href: str
    """Its file, relative to the page."""
    title: str
    """Where it stands: "prompt a house, strength 0.8"."""
    parameters: str
    """How it was made, as in the PNG."""
    values: Sequence[tuple[str, str]] = ()
    """What was measured: words and numbers."""
    rows: int = 1
    """That it stands for: the base's own picture is the same beside every LoRA."""

    @property
    def lines(self) -> str:
        """`values` for the page's script: one a line, a tab between words and number."""
        return "\n".join(f"{words}\t{number}" for words, number in self.values)


@dataclass(frozen=True)
class Block:
    """Rows and columns of pictures."""

    label: str | None
    columns: Sequence[str]
    rows: Sequence[tuple[str | None, Sequence[ShownCell | None]]]
    """None: the picture above goes on."""


@dataclass(frozen=True)
class MeasureRow:
    """What was measured of one LoRA at one strength, the mean over its pictures; None where there was nothing to
    measure by."""

    name: str
    strength: float
    loras: Sequence[str]
    """AutoV3 of the files that are on; none: the base."""
    pictures: int
    pixels: float
    """Difference from the base, 0 … 1."""
    latents: float
    style: float | None
    prompt: float
    nearest: str | None
    similarity: float | None


@dataclass(frozen=True)
class GridData:
    """Everything on the page."""

    title: str
    axes: Sequence[str]
    """Names, the one across last, the one down before it."""
    blocks: Sequence[Block]
    rows: Sequence[MeasureRow]
    facts: Sequence[tuple[str, str]]
    with_data: bool
    """That training pictures were looked at."""
    sheet: str
    """The contact sheet's file, relative to the page."""
    thumbnails: Mapping[str, Image] = field(default_factory=dict)
    """Of the nearest training pictures, by name."""


def render(data: GridData) -> str:
    """The whole page as HTML."""
    return fill(
        "grid.html",
        grid=data,
        # for the bars: the longest is that of the largest value
        most_pixels=max((row.pixels for row in data.rows), default=0) or 1,
        most_prompt=max([1e-9, *(row.prompt for row in data.rows)]),
    )
