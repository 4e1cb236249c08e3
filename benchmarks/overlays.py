"""Writing over pictures: how many of the notes of `lora-scripts check` are false, and how much is found.

    python benchmarks/overlays.py --half tuning [--count 400] [--show FOLDER]

Scenes of the miniature world in its own styles and in those of `styles.py`, and pictures of `material.py` (windows,
weaves, pen strokes, leaves …), each once as it is and once with writing drawn over it. The rule may be set on the half
"tuning"; the figures in docs/check.md are of "final", other styles, kinds and seeds, drawn once.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import defects
import numpy as np
from check_defects import interval
from PIL import Image, ImageDraw, ImageFont
from styles import FRESH, TUNING, paint

from lora_scripts.check.facts import measure
from lora_scripts.check.overlays import Box
from lora_scripts.demo import world

HALVES = {"tuning": (71, ("plain", *TUNING)), "final": (72, ("plain", "neon", "sketch", *FRESH))}
"""Seed and styles."""
SIZES = (128, 512, 512, 768)
TEXTS = {
    "signature": ("Jane Doe", "m. okafor", "J.D. 2021"),
    "address": ("www.example.org/art", "@jane_draws_things", "stock-photos.example"),
    "notice": ("© 2024 Jane Doe", "All rights reserved", "SAMPLE PREVIEW"),
    "date": ("2024-11-05 17:32", "05.11.2024", "NOV 05 2024"),
    "title": ("The House on the Hill", "Chapter 12: Snow", "night over the water"),
}
"""What is written, by what it is."""


def written(image: Image.Image, kind: str, rng: np.random.Generator) -> tuple[Image.Image, Box]:
    """The picture with a line of writing, and where it stands: white, black or of a colour, opaque or half transparent,
    with or without an outline; a title is larger and in the middle, all else small and anywhere."""
    out, text = image.copy(), str(rng.choice(TEXTS[kind]))
    share = rng.uniform(0.055, 0.085) if kind == "title" else rng.uniform(0.03, 0.055)
    pen, font = ImageDraw.Draw(out, "RGBA"), ImageFont.load_default(max(9.0, image.height * float(share)))
    room = max(0.0, image.width - pen.textlength(text, font))
    x, y = (room / 2 if kind == "title" else room * rng.uniform(0, 1)), image.height * float(rng.uniform(0.02, 0.9))
    inks = [(255, 255, 255), (0, 0, 0), tuple(int(v) for v in rng.integers(0, 255, 3))]
    colour = inks[int(rng.choice(3, p=[0.55, 0.25, 0.2]))]
    edge = int(rng.random() < 0.25)
    away = tuple(255 - v for v in colour)
    pen.text((x, y), text, (*colour, int(rng.choice([150, 200, 255]))), font, stroke_width=edge, stroke_fill=away)
    box = pen.textbbox((x, y), text, font)
    return out, (box[0] / image.width, box[1] / image.height, box[2] / image.width, box[3] / image.height)


def inside(box: Box, around: Box) -> bool:
    """Whether the middle of one lies in the other."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return around[0] <= x <= around[2] and around[1] <= y <= around[3]


@dataclass(frozen=True)
class Row:
    """One picture."""

    style: str
    kind: str
    """Of the writing."""
    size: int
    """Pixels, of the miniature world; 0 of others."""
    false: float
    """How sure the note of the picture without writing is; 0: there is none."""
    found: float
    """The same of the writing itself."""
    image: bytes
    """That was noted wrongly."""


def job(given: tuple[str, int]) -> Row:
    half, number = given
    seed, styles = HALVES[half]
    rng = np.random.default_rng([seed, number])
    size, kind = int(rng.choice(SIZES)), list(TEXTS)[int(rng.integers(len(TEXTS)))]
    if number % 2:
        size, (style, plain) = 0, defects.synthetic(rng, tuning=half == "tuning")
    else:
        scene = next(islice(world.scenes(seed * 10000 + number), 1))
        style = styles[number // 2 % len(styles)]
        plain = paint(replace(scene, style=style), size)
    marked, where = written(plain, kind, rng)
    with tempfile.TemporaryDirectory() as folder:
        notes = []
        for name, image in (("plain", plain), ("written", marked)):
            file = Path(folder, f"{name}.png")
            image.save(file)
            notes.append(measure(name, file).texts)
    false = max((note.sure for note in notes[0]), default=0.0)
    found = max((note.sure for note in notes[1] if inside(note.box, where)), default=0.0)
    data = io.BytesIO()
    plain.save(data, "PNG")
    return Row(style, kind, size, false, found, data.getvalue() if false else b"")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--half", choices=tuple(HALVES), required=True)
    options.add_argument("--count", type=int, default=240, help="pictures, each without and with writing")
    options.add_argument("--show", type=Path, help="a folder for pictures that were noted wrongly")
    given = options.parse_args()
    with ProcessPoolExecutor(2) as pool:
        rows = list(pool.map(job, [(given.half, i) for i in range(given.count)], chunksize=8))
    for least in (0.4, 0.45, 0.5, 0.55, 0.6):
        false, true = sum(row.false >= least for row in rows), sum(row.found >= least for row in rows)
        print(f"{given.half}, from {least} on: clean pictures noted {interval(false, len(rows))},", end=" ")
        print(
            f"writing found {interval(true, len(rows))}; of {true + false} notes false {interval(false, true + false)}"
        )
    for title in ("style", "size", "kind"):
        of, wrong, right = (
            Counter(getattr(r, title) for r in some)
            for some in (rows, [r for r in rows if r.false], [r for r in rows if r.found])
        )
        print(title, {key: f"{wrong[key]} false, {right[key]} found of {of[key]}" for key in of})
    for number, row in enumerate(rows if given.show else []):
        if row.image:
            given.show.mkdir(parents=True, exist_ok=True)
            (given.show / f"{row.style}-{number}.png").write_bytes(row.image)


if __name__ == "__main__":
    main()
