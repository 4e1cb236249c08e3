"""What becomes of a grid's pictures: measures, the contact sheet, the page, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from lora_scripts.data.buckets import views
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.scan import list_data
from lora_scripts.formats import io
from lora_scripts.generate.command import lora_hash
from lora_scripts.grid import measures
from lora_scripts.grid.axes import Cell, Point
from lora_scripts.grid.command import Grid, remembered
from lora_scripts.grid.measures import Look, Style
from lora_scripts.report.grid_page import Block, GridData, MeasureRow, ShownCell, write_grid_page
from lora_scripts.report.sheet import contact_sheet

MOST_TRAINING = 100
"""Training pictures that are looked at, spread evenly over all."""


@dataclass(frozen=True)
class Measured:
    """Of one picture; None where there is nothing to measure by."""

    pixels: float
    """Mean |difference| from the base's picture, 0 … 1."""
    latents: float
    style: float | None
    prompt: float
    nearest: str | None
    similarity: float | None


@dataclass(frozen=True)
class Training:
    """The training pictures, as the encoder sees them."""

    names: Sequence[str]
    paths: Sequence[Path]
    looks: Sequence[Look]
    style: Style


def write_grid(grid: Grid, cells: Mapping[tuple[int, ...], Cell], bare: Mapping[tuple[int, ...], Cell]) -> None:
    """Measures, and writes grid.json, grid.png and grid.html."""
    output = grid.options.output
    needed = {cell.digest: cell for cell in (*cells.values(), *(bare.values() if grid.options.measures else ()))}
    images = {digest: _opened(grid.path(cell)) for digest, cell in needed.items()}
    measured: dict[tuple[int, ...], Measured] = {}
    training = None
    if grid.options.measures:
        training = _training(grid, next(iter(cells.values())).size)
        measured = _measure(grid, cells, bare, images, training)
    rows = _rows(grid, measured, training)
    io.write_text(output / "grid.json", json.dumps(_plain(grid, cells, measured, rows), indent=1, ensure_ascii=False))
    blocks = _blocks(grid, cells, images, measured)
    titles = [axis.name for axis in grid.plan.axes]
    io.save_png(output / "grid.png", contact_sheet(titles, blocks))
    data = GridData(
        title=_title(grid),
        axes=titles,
        blocks=blocks,
        rows=rows,
        facts=_facts(grid, cells, training),
        with_data=training is not None,
        sheet="grid.png",
    )
    write_grid_page(output / "grid.html", data, io.write_text)
    print(f"the picture: {output / 'grid.png'}\nthe page: {output / 'grid.html'}", flush=True)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _training(grid: Grid, size: tuple[int, int]) -> Training | None:
    """The pictures of --data, or of the run, scaled and cut to the cells' size."""
    folder = grid.sources.data
    if folder is None:
        print("no training pictures are known, so likeness to their style is not measured; name them with --data")
        return None
    images = list(list_data(folder, allow_missing_captions=True).images.items())
    count = min(len(images), MOST_TRAINING)
    chosen = [images[i * len(images) // count] for i in range(count)]
    print(f"looking at {count} of {len(images)} training pictures", flush=True)
    looks = []
    for _, path in chosen:
        image = load_rgb(path)
        (view, *_) = views(image.size, size, flip=False, random_crop=False, seed=0, index=0)
        looks.append(measures.look(grid.family, apply_view(image, view)))
    return Training([name for name, _ in chosen], [path for _, path in chosen], looks, Style(looks))


def _measure(
    grid: Grid,
    cells: Mapping[tuple[int, ...], Cell],
    bare: Mapping[tuple[int, ...], Cell],
    images: Mapping[str, Image.Image],
    training: Training | None,
) -> dict[tuple[int, ...], Measured]:
    print(f"measuring {len(images)} pictures", flush=True)
    looks = {digest: measures.look(grid.family, measures.as_pixels(image)) for digest, image in images.items()}
    places = {cell.digest: place for place, cell in cells.items()}
    gains = {digest: _gain(grid, place, cells[place], looks[digest]) for digest, place in places.items()}
    grid.stack.take_off()
    found = {}
    for place, cell in cells.items():
        one, base = cell.digest, bare[place].digest
        best = measures.nearest(looks[one], training.looks) if training else None
        found[place] = Measured(
            pixels=measures.pixel_difference(images[one], images[base]),
            latents=measures.latent_difference(looks[one], looks[base]),
            style=training.style.likeness(looks[one], looks[base]) if training else None,
            prompt=gains[one],
            nearest=training.names[best[0]] if training and best else None,
            similarity=best[1] if best else None,
        )
    return found


def _gain(grid: Grid, place: tuple[int, ...], cell: Cell, look: Look) -> float:
    """By the model that drew the picture. The one measure that takes long is kept beside it."""
    path = grid.path(cell).with_suffix(".json")
    kept = remembered(path)
    if "prompt" not in kept:
        grid.wear(grid.plan.points[place])
        kept = {"prompt": measures.prompt_gain(grid.family, look.latents, cell.prompt)}
        io.write_text(path, json.dumps(kept))
    return kept["prompt"]


def _rows(grid: Grid, measured: Mapping[tuple[int, ...], Measured], training: Training | None) -> list[MeasureRow]:
    """The means over prompts, seeds and cfgs, for each LoRA and strength; the base is one row."""
    groups: dict[tuple[tuple[str, str], ...] | None, list[tuple[Point, Measured]]] = {}
    keys: dict[object, tuple[str, float, list[str]]] = {}
    for place, one in measured.items():
        point = grid.plan.points[place]
        worn = grid.worn(point)
        key = tuple((str(source.path), f"{strength:g}") for source, strength in worn) or None
        groups.setdefault(key, []).append((point, one))
        name = " + ".join(source.label for source, _ in worn) or "the base"
        keys[key] = name, worn[0][1] if worn else 0.0, [lora_hash(source.path) for source, _ in worn]
    rows = []
    for key, found in groups.items():
        name, strength, hashes = keys[key]
        styles = [one.style for _, one in found if one.style is not None]
        closest = max((one for _, one in found if one.similarity is not None), key=_similarity, default=None)
        thumbnail = None
        if training and closest and closest.nearest:
            thumbnail = load_rgb(training.paths[training.names.index(closest.nearest)])
            thumbnail.thumbnail((192, 192))
        rows.append(
            MeasureRow(
                name=name,
                strength=strength,
                loras=hashes,
                pictures=len(found),
                pixels=_mean([one.pixels for _, one in found]),
                latents=_mean([one.latents for _, one in found]),
                style=_mean(styles) if styles else None,
                prompt=_mean([one.prompt for _, one in found]),
                nearest=closest.nearest if closest else None,
                similarity=closest.similarity if closest else None,
                thumbnail=thumbnail,
            )
        )
    return sorted(rows, key=lambda row: bool(row.loras))


def _similarity(one: Measured) -> float:
    return -2.0 if one.similarity is None else one.similarity


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _blocks(
    grid: Grid,
    cells: Mapping[tuple[int, ...], Cell],
    images: Mapping[str, Image.Image],
    measured: Mapping[tuple[int, ...], Measured],
) -> list[Block]:
    def shown(place: tuple[int, ...]) -> ShownCell:
        cell, point = cells[place], grid.plan.points[place]
        with Image.open(path := grid.path(cell)) as image:
            text = str(getattr(image, "text", {}).get("parameters", ""))
        title = ", ".join(
            f"{axis.name} {axis.labels[number]}" for axis, number in zip(grid.plan.axes, place, strict=True)
        )
        values = _told(measured[place], base=not grid.worn(point)) if place in measured else ()
        return ShownCell(images[cell.digest], f"cells/{path.name}", title, text, values)

    return [
        Block(label, grid.plan.across.labels, [(row, [shown(place) for place in places]) for row, places in rows])
        for label, rows in grid.plan.rows()
    ]


def _told(one: Measured, *, base: bool) -> list[tuple[str, str]]:
    rows = [] if base else [("difference from the base", f"{one.pixels:.1%}")]
    if one.style is not None and not base:
        rows.append(("likeness to the training style", f"{one.style:.0%}"))
    rows.append(("prompt found", f"{one.prompt:.1%}"))
    if one.nearest is not None and one.similarity is not None:
        rows.append(("nearest training picture", f"{one.nearest} ({one.similarity:.2f})"))
    return rows


def _title(grid: Grid) -> str:
    names = [one.path.stem for one in (*grid.sources.loras, *grid.sources.checkpoints[-1:]) if one]
    return ", ".join(dict.fromkeys(names))


def _facts(grid: Grid, cells: Mapping[tuple[int, ...], Cell], training: Training | None) -> list[tuple[str, str]]:
    options, first = grid.options, next(iter(cells.values()))
    facts = [
        ("pictures", f"{len(cells)}, {len({cell.digest for cell in cells.values()})} of them different"),
        ("base", grid.sources.base.name),
        ("sampler", f"{first.scheduler}, {options.steps} steps"),
        ("size", f"{first.size[0]} × {first.size[1]}"),
    ]
    single = {"seed": options.seeds, "cfg": options.cfgs, "strength": options.strengths}
    facts += [(name, f"{values[0]:g}") for name, values in single.items() if len(values) == 1]
    if len(grid.sources.prompts) == 1:
        facts.append(("prompt", first.prompt))
    if training:
        facts.append(("training pictures", str(len(training.names))))
    return facts


def _plain(
    grid: Grid,
    cells: Mapping[tuple[int, ...], Cell],
    measured: Mapping[tuple[int, ...], Measured],
    rows: Sequence[MeasureRow],
) -> dict[str, object]:
    """For grid.json, which `lora-scripts card` reads."""
    points = grid.plan.points
    return {
        "axes": [asdict(axis) for axis in grid.plan.axes],
        "cells": [
            {
                "place": list(place),
                "file": f"cells/{cell.digest}.png",
                "loras": [lora_hash(source.path) for source, _ in grid.worn(points[place])],
                "strength": grid.options.strengths[points[place].strength],
                "prompt": cell.prompt,
                "negative": cell.negative,
                "seed": cell.seed,
                "cfg": cell.cfg,
                "steps": cell.steps,
                "scheduler": cell.scheduler,
                "size": list(cell.size),
                "measures": asdict(measured[place]) if place in measured else None,
            }
            for place, cell in cells.items()
        ],
        "rows": [{key: value for key, value in vars(row).items() if key != "thumbnail"} for row in rows],
    }
