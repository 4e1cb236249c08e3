"""Pictures over two or three axes, each drawn once, as one picture and one page with measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError
from lora_scripts.events import Sink, ignore
from lora_scripts.formats import io
from lora_scripts.generate.known_by import lora_hash
from lora_scripts.grid.axes import NAMES, Place, plan
from lora_scripts.grid.cells import Cells, Painter, draw_missing, load_painter, opened
from lora_scripts.grid.sources import GridOptions, Sources, find_sources
from lora_scripts.report.grid_page import MeasureRow, render
from lora_scripts.report.sheet import contact_sheet

if TYPE_CHECKING:
    from lora_scripts.grid.scores import Score


@dataclass(frozen=True)
class Grid:
    """A grid that is drawn."""

    page: Path
    sheet: Path
    """All pictures in one."""
    cells: Path
    """The folder of the pictures."""
    pictures: int
    """Places of the grid."""
    drawn: int
    """Pictures that were not there before, those of the base alone among them."""
    rows: tuple[MeasureRow, ...]
    """What was measured, the base first; none without measures."""


def draw_grid(options: GridOptions, sink: Sink = ignore) -> Grid:
    """Draws what is not drawn yet, then writes grid.png, grid.html and grid.json. Mistakes are told before a model is
    loaded."""
    sources = find_sources(options)
    wanted = plan(_labels(options, sources))
    io.require_writable(options.output / "grid.png")
    painter = load_painter(options, sources, sink)
    cells = painter.cells(wanted)
    different = cells.different(bare=options.measures)
    drawn = draw_missing(painter, different, sink)

    from lora_scripts.grid.scores import look_at_training, mean_rows, score
    from lora_scripts.grid.shown import shown

    images = {digest: opened(painter.path(cell)) for digest, (cell, _) in different.items()}
    scores: dict[Place, Score] = {}
    training = None
    if options.measures:
        training = look_at_training(painter, next(iter(cells.at.values())).size, sink)
        scores = score(painter, cells, images, training, sink)
    rows = mean_rows(painter, cells, scores)
    page, sheet = options.output / "grid.html", options.output / "grid.png"
    data = shown(painter, cells, images, scores, rows, training, sheet.name)
    plain = json.dumps(_plain(painter, cells, scores, rows), indent=1, ensure_ascii=False)
    io.write_text(options.output / "grid.json", plain)
    io.save_png(sheet, contact_sheet(data.axes, data.blocks))
    io.write_text(page, render(data))
    return Grid(page, sheet, options.output / "cells", len(cells.at), drawn, tuple(rows))


def _labels(options: GridOptions, sources: Sources) -> dict[str, list[str]]:
    prompts = [line.prompt for line in sources.prompts]
    labels = {
        # the same words twice are told apart by their options
        "prompt": [line.text if prompts.count(line.prompt) > 1 else line.prompt for line in sources.prompts],
        "lora": [one.label if one else "" for one in sources.loras],
        "checkpoint": [one.label if one else "" for one in sources.checkpoints],
        "seed": [str(seed) for seed in options.seeds],
        "cfg": [f"{cfg:g}" for cfg in sources.cfgs],
        "strength": [f"{strength:g}" for strength in options.strengths],
    }
    for name in NAMES:
        twice = sorted({label for label in labels[name] if labels[name].count(label) > 1})
        if twice and name != "prompt":
            raise UserError(f"--{name}s: {twice[0]} is given twice", hint="leave one out")
    return labels


def _plain(
    painter: Painter, cells: Cells, scores: Mapping[Place, Score], rows: Sequence[MeasureRow]
) -> dict[str, object]:
    """For grid.json, which `lora-scripts card` reads."""
    points = cells.plan.points
    return {
        "axes": [asdict(axis) for axis in cells.plan.axes],
        "cells": [
            {
                "place": list(place),
                "file": f"cells/{cell.digest}.png",
                "loras": [lora_hash(source.path) for source, _ in painter.worn(points[place])],
                "strength": painter.options.strengths[points[place].strength],
                "prompt": cell.prompt,
                "negative": cell.negative,
                "seed": cell.seed,
                "cfg": cell.cfg,
                "steps": cell.steps,
                "scheduler": cell.scheduler,
                "size": list(cell.size),
                "measures": asdict(scores[place]) if place in scores else None,
            }
            for place, cell in cells.at.items()
        ],
        "rows": [asdict(row) for row in rows],
    }
