"""Plants defects into clean pictures and counts what `lora-scripts check` finds, and what it finds in the clean ones.

    python benchmarks/check_defects.py --count 240 [--photos FOLDER]

Synthetic pictures are of the kinds that no threshold has seen (material.HELD_OUT); photographs are counted apart.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import defects
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lora_scripts.check import sharpness
from lora_scripts.check.facts import PictureFacts, measure
from lora_scripts.check.pictures import picture_findings

Made = dict[str, tuple[str, bytes]]
"""Defect -> (what exactly, the file)."""
SHARPNESS = ("blurred", "upscaled")


def made_of(image: Image.Image, rng: defects.Rng, number: int) -> Made:
    """The picture as a clean file, and with one defect each."""
    clean = defects.encoded(image, rng)
    out: Made = {"clean": ("", clean), "corrupt": defects.broken(clean, rng)}
    if math.sqrt(image.width * image.height) > sharpness.WORK * sharpness.SMALLEST:
        sigma = 2.0 if rng.random() < 0.25 else float(rng.uniform(2, 4))
        factor = float(rng.choice([2.0, 3.0, 4.0]) if rng.random() < 0.5 else rng.uniform(2, 4))
        out["blurred"] = f"{sigma:.1f}", defects.encoded(defects.blurred(image, sigma, rng), rng)
        out["upscaled"] = f"{factor:.1f}", defects.encoded(defects.enlarged(image, factor, rng), rng)
    shown = defects.opened(clean)
    same = str(rng.choice(["the same bytes", "PNG", "WEBP", "BMP"]))
    out["exact_duplicate"] = same, clean if same == "the same bytes" else _lossless(shown, same)
    out["near_duplicate"] = "", defects.encoded(defects.near_copy(shown, rng), rng)
    out["mirrored"] = "", defects.encoded(ImageOps.mirror(shown), rng)
    quality = int(rng.integers(8, 21))
    out["jpeg_blocks"] = "", _jpeg_saved_again(image, quality, again=bool(number % 2))
    out["border"] = "", defects.encoded(_barred(image, rng), rng)
    out["overlay"] = "", defects.encoded(_marked(image, rng), rng)
    return out


def _lossless(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"lossless": True, "quality": 0} if kind == "WEBP" else {}))
    return out.getvalue()


def _jpeg_saved_again(image: Image.Image, quality: int, *, again: bool) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return _lossless(defects.opened(out.getvalue()), "PNG") if again else out.getvalue()


def _barred(image: Image.Image, rng: defects.Rng) -> Image.Image:
    """Bars of one colour above and below, or left and right."""
    colour = tuple(int(v) for v in rng.choice([[0, 0, 0], [255, 255, 255], [30, 30, 40]]))
    across = int(rng.random() < 0.5)
    depth = round(image.size[across] * rng.uniform(0.03, 0.15))
    return ImageOps.expand(image, (0, depth) if across else (depth, 0), colour)


def _marked(image: Image.Image, rng: defects.Rng) -> Image.Image:
    """A line of writing, opaque or half transparent."""
    out, text = image.copy(), str(rng.choice(["© Jane Doe 2021", "www.stock-photos.example", "SAMPLE PREVIEW"]))
    draw, font = ImageDraw.Draw(out, "RGBA"), ImageFont.load_default(image.height * float(rng.uniform(0.03, 0.06)))
    place = rng.uniform(0, 1) * max(0.0, image.width - draw.textlength(text, font)), image.height * rng.uniform(0, 0.9)
    draw.text(place, text, (*([255] * 3 if rng.random() < 0.7 else [0] * 3), int(rng.choice([140, 200, 255]))), font)
    return out


def job(given: tuple[int, Path | None]) -> tuple[str, dict[str, tuple[str, PictureFacts]]]:
    """Draws or opens one picture, plants, measures: ("photograph" or its kind, {defect: (what exactly, facts)})."""
    number, path = given
    rng = np.random.default_rng([2, number])
    if path is None:
        kind, image = defects.synthetic(rng, tuning=False)
    else:
        kind, image = "photograph", defects.photograph(path, rng) or Image.open(path).convert("RGB")
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for defect, (detail, data) in made_of(image, rng, number).items():
            file = Path(folder, defect)
            file.write_bytes(data)
            out[defect] = detail, replace(measure(f"{number}/{defect}", file), thumbnail=b"")
    return kind, out


def interval(hits: int, of: int) -> str:
    """A share with its 95 % interval (Wilson, 1927)."""
    if not of:
        return "-"
    z, p = 1.96, hits / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    low, high = ((middle + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    return f"{p:.1%} ({max(low, 0):.1%} – {min(high, 1):.1%})"


def found(facts: Iterable[PictureFacts]) -> dict[str, set[str]]:
    """Kind of finding -> files."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for finding in picture_findings(list(facts), None):
        kinds[finding.kind].update(finding.files)
    return kinds


def table(rows: list[tuple[str, dict[str, tuple[str, PictureFacts]]]], *, misses: bool) -> None:
    """One line a defect. Copies are looked for among all clean pictures together with all copies of one sort."""
    clean = [made["clean"][1] for _, made in rows]
    alarms = found(clean)
    print("| defect | planted | found | clean | false alarms |\n|---|---|---|---|---|")
    for defect in next(made for _, made in rows if "blurred" in made):
        planted = [made[defect][1] for _, made in rows if defect in made]
        if defect == "clean":
            continue
        copies = defect in ("exact_duplicate", "near_duplicate", "mirrored")
        hits = found([*clean, *planted] if copies else planted)
        # a lossless copy of a copy is exact; both kinds name the picture
        accepted = {"near_duplicate": ("near_duplicate", "exact_duplicate")}.get(defect, (defect,))
        named = set().union(*(hits[kind] for kind in accepted))
        good = [fact for fact in planted if fact.name in named]
        wrong = len(alarms[defect])
        print(f"| {defect} | {len(planted)} | {interval(len(good), len(planted))}", end=" ")
        print(f"| {len(clean)} | {interval(wrong, len(clean))} |")
        if defect in SHARPNESS:
            either = len({f.name for f in planted} & (hits["blurred"] | hits["upscaled"]))
            print(f"| {defect}: found by either test | {len(planted)} | {interval(either, len(planted))} | | |")
        if misses:
            kinds = {made[defect][1].name: (kind, made[defect][0]) for kind, made in rows if defect in made}
            print("    missed:", [kinds[f.name] for f in planted if f.name not in named])
            print("    alarms:", [kind for kind, made in rows if made["clean"][1].name in alarms[defect]])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=240, help="synthetic pictures")
    options.add_argument("--photos", type=Path, help="a folder of sharp photographs, each used once")
    options.add_argument("--most", type=int, default=10000, help="photographs at most")
    options.add_argument("--misses", action="store_true", help="name what was missed")
    given = options.parse_args()
    photos = defects.photographs(given.photos)[: given.most]
    jobs = [(i, None) for i in range(given.count)] + [(100000 + i, path) for i, path in enumerate(photos)]
    with ProcessPoolExecutor(2) as pool:
        rows = list(pool.map(job, jobs, chunksize=4))
    for title, part in (("Synthetic", rows[: given.count]), ("Photographs", rows[given.count :])):
        if part:
            print(f"\n{title}: {len(part)} pictures\n")
            table(part, misses=given.misses)


if __name__ == "__main__":
    main()
