"""What people are shown of a grid: the blocks of its pictures, what is the same for all of them, and thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from PIL import Image

from lora_scripts.data.image import load_rgb
from lora_scripts.grid.axes import Place
from lora_scripts.grid.cells import Cells, Painter
from lora_scripts.grid.scores import Score, Training
from lora_scripts.report.grid_page import Block, GridData, MeasureRow, ShownCell
from lora_scripts.units import percent, span

LORAS = ("LoRA", "checkpoint")
"""Axes that say nothing of the base's own picture."""
THUMBNAIL = 192
"""Pixels of the longer side."""


def shown(
    painter: Painter,
    cells: Cells,
    images: Mapping[str, Image.Image],
    scores: Mapping[Place, Score],
    rows: Sequence[MeasureRow],
    training: Training | None,
    sheet: str,
) -> GridData:
    """Everything on the page; `images`: digest -> picture, `sheet`: the contact sheet's file beside the page."""
    sources = painter.sources
    names = [one.path.stem for one in sources.loras if one] + [one.run for one in sources.checkpoints if one]
    nearest = dict.fromkeys(row.nearest for row in rows if row.nearest) if training else {}
    return GridData(
        title=", ".join(dict.fromkeys(names)),
        axes=[axis.name for axis in cells.plan.axes],
        blocks=_blocks(painter, cells, images, scores),
        rows=rows,
        facts=_facts(painter, cells, training),
        with_data=training is not None,
        sheet=sheet,
        thumbnails={name: _thumbnail(training, name) for name in nearest if training},
    )


def _thumbnail(training: Training, name: str) -> Image.Image:
    image = load_rgb(training.paths[name])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _blocks(
    painter: Painter, cells: Cells, images: Mapping[str, Image.Image], scores: Mapping[Place, Score]
) -> list[Block]:
    def cell_at(place: Place, rows: int) -> ShownCell:
        cell = cells.at[place]
        path = painter.path(cell)
        with Image.open(path) as image:
            text = str(getattr(image, "text", {}).get("parameters", ""))
        base = not painter.worn(cells.plan.points[place])
        title = ", ".join(
            f"{axis.name} {axis.labels[number]}"
            for axis, number in zip(cells.plan.axes, place, strict=True)
            if not (base and axis.name in LORAS)
        )
        values = _values(scores[place], base=base) if place in scores else ()
        return ShownCell(images[cell.digest], f"{path.parent.name}/{path.name}", title, text, values, rows)

    def rows_of(rows: Sequence[tuple[str | None, Sequence[Place]]]) -> list[tuple[str | None, list[ShownCell | None]]]:
        columns: list[list[ShownCell | None]] = []
        for places in zip(*(places for _, places in rows), strict=True):
            lengths = runs([cells.at[place].digest for place in places])
            columns.append([cell_at(place, n) if n else None for place, n in zip(places, lengths, strict=True)])
        return [(label, [column[n] for column in columns]) for n, (label, _) in enumerate(rows)]

    return [Block(label, cells.plan.across.labels, rows_of(rows)) for label, rows in cells.plan.rows()]


def runs(values: Sequence[str]) -> list[int]:
    """For each value the number of equal ones from there on; 0 where it is the one before it again."""
    lengths: list[int] = []
    for _, group in groupby(values):
        count = len(list(group))
        lengths += [count, *[0] * (count - 1)]
    return lengths


def _values(one: Score, *, base: bool) -> list[tuple[str, str]]:
    """Words and numbers of one picture."""
    rows = [] if base else [("difference from the base", percent(one.pixels, 1))]
    if one.style is not None and not base:
        rows.append(("likeness to the training style", percent(one.style)))
    rows.append(("prompt found", percent(one.prompt, 1)))
    if one.nearest is not None and one.similarity is not None:
        rows.append(("nearest training picture", f"{one.nearest} ({one.similarity:.2f})"))
    return rows


def _facts(painter: Painter, cells: Cells, training: Training | None) -> list[tuple[str, str]]:
    """What is the same for all pictures; steps and sizes that prompts have of their own beside it."""
    options, first = painter.options, next(iter(cells.at.values()))
    sizes = dict.fromkeys(f"{wide} × {high}" for wide, high in (cell.size for cell in cells.at.values()))
    steps = sorted({cell.steps for cell in cells.at.values()})
    facts = [
        ("pictures", str(len(cells.different(bare=False)))),
        ("base", painter.sources.base.name),
        ("sampler", f"{first.scheduler}, {span(steps)} step{'' if steps == [1] else 's'}"),
        ("size", ", ".join(sizes)),
    ]
    single = {"seed": options.seeds, "cfg": painter.sources.cfgs, "strength": options.strengths}
    facts += [(name, f"{values[0]:g}") for name, values in single.items() if len(values) == 1]
    if len(painter.sources.prompts) == 1:
        facts.append(("prompt", first.prompt))
    if training:
        facts.append(("training pictures", str(len(training.paths))))
    return facts
