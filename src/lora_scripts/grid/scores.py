"""What is measured of a grid's pictures, and the means for each LoRA and strength."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_scripts.data.buckets import views
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.listing import list_data
from lora_scripts.events import Note, Progress, Sink
from lora_scripts.formats import io
from lora_scripts.generate.known_by import lora_hash
from lora_scripts.grid import measures
from lora_scripts.grid.axes import Place, Point
from lora_scripts.grid.cells import Cell, Cells, Painter
from lora_scripts.grid.measures import Look, Style
from lora_scripts.report.grid_page import MeasureRow
from lora_scripts.units import number_of

MOST_TRAINING = 100
"""Training pictures that are looked at, spread evenly over all."""


@dataclass(frozen=True)
class Score:
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

    paths: Mapping[str, Path]
    """By name, in the order of `looks`."""
    looks: Sequence[Look]
    style: Style


def look_at_training(painter: Painter, size: tuple[int, int], sink: Sink) -> Training | None:
    """The pictures of --data, or of the run, scaled and cut to the cells' size; None where none are known."""
    folder = painter.sources.data
    if folder is None:
        text = "no training pictures are known, so likeness to their style is not measured; name them with --data"
        sink(Note(text))
        return None
    images = list(list_data(folder, allow_missing_captions=True).images.items())
    count = min(len(images), MOST_TRAINING)
    chosen = dict(images[i * len(images) // count] for i in range(count))
    sink(Note(f"looking at {count} of {len(images)} training pictures"))
    looks: list[Look] = []
    for path in chosen.values():
        image = load_rgb(path)
        (view, *_) = views(image.size, size, flip=False, random_crop=False, seed=0, index=0)
        looks.append(measures.look(painter.family, apply_view(image, view)))
        sink(Progress("training pictures", len(looks), count))
    return Training(chosen, looks, Style(looks))


def score(
    painter: Painter, cells: Cells, images: Mapping[str, Image.Image], training: Training | None, sink: Sink
) -> dict[Place, Score]:
    """Measures every cell; `images`: digest -> picture, of the base's own, too."""
    sink(Note(f"measuring {number_of(len(images), 'picture')}"))
    looks = {digest: measures.look(painter.family, measures.as_pixels(image)) for digest, image in images.items()}
    different = cells.different(bare=False)
    gains: dict[str, float] = {}
    for digest, (cell, point) in different.items():
        gains[digest] = _gain(painter, cell, point, looks[digest])
        sink(Progress("measures", len(gains), len(different)))
    painter.stack.take_off()
    scores: dict[Place, Score] = {}
    for place, cell in cells.at.items():
        one, base = cell.digest, cells.bare[place].digest
        number, similarity = measures.nearest(looks[one], training.looks) if training else (None, None)
        scores[place] = Score(
            pixels=measures.pixel_difference(images[one], images[base]),
            latents=measures.latent_difference(looks[one], looks[base]),
            style=training.style.likeness(looks[one], looks[base]) if training else None,
            prompt=gains[one],
            nearest=list(training.paths)[number] if training and number is not None else None,
            similarity=similarity,
        )
    return scores


def _gain(painter: Painter, cell: Cell, point: Point, look: Look) -> float:
    """By the model that drew the picture. The one measure that takes long is remembered beside it."""
    path = painter.path(cell).with_suffix(".json")
    gain = _remembered(path)
    if gain is None:
        painter.wear(point)
        gain = measures.prompt_gain(painter.family, look.latents, cell.prompt)
        io.write_text(path, json.dumps({"prompt": gain}))
    return gain


def _remembered(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text("utf-8"))["prompt"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mean_rows(painter: Painter, cells: Cells, scores: Mapping[Place, Score]) -> list[MeasureRow]:
    """The means over prompts, seeds and cfgs, for each LoRA and strength; the base is one row, the first."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, tuple[Point, Score]]] = {}
    for place, one in scores.items():
        point = cells.plan.points[place]
        key = tuple((str(source.path), f"{strength:g}") for source, strength in painter.worn(point))
        groups.setdefault(key, {})[cells.at[place].digest] = point, one  # the base's stand at several places
    rows = [_row(painter, next(iter(m.values()))[0], [one for _, one in m.values()]) for m in groups.values()]
    return sorted(rows, key=lambda row: bool(row.loras))


def _row(painter: Painter, point: Point, scores: Sequence[Score]) -> MeasureRow:
    worn = painter.worn(point)
    styles = [one.style for one in scores if one.style is not None]
    closest = max((one for one in scores if one.similarity is not None), key=_similarity, default=None)
    return MeasureRow(
        name=" + ".join(source.label for source, _ in worn) or "the base",
        strength=worn[0][1] if worn else 0.0,
        loras=[lora_hash(source.path) for source, _ in worn],
        pictures=len(scores),
        pixels=_mean([one.pixels for one in scores]),
        latents=_mean([one.latents for one in scores]),
        style=_mean(styles) if styles else None,
        prompt=_mean([one.prompt for one in scores]),
        nearest=closest.nearest if closest else None,
        similarity=closest.similarity if closest else None,
    )


def _similarity(one: Score) -> float:
    return -2.0 if one.similarity is None else one.similarity


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
