"""How often `check --base` is right about exchanged captions: healthy and planted sets of the miniature world.

python -m benchmarks.exchanged_captions run FOLDER [--set tune|fresh] [--part I/N]   asks the base, a file for each set;
                                                                                  goes on where it stopped
python -m benchmarks.exchanged_captions table FOLDER [--set tune|fresh]              what was named, as a table

A set has 12 to 16 pictures of one style at the base's own size, and captions of four kinds. What the base answers to
every picture with every caption is kept, so that captions are exchanged afterwards: each set is judged as it is, and
with the captions of a fifth or a tenth of it (two at least) exchanged or handed round. Limits are set on the set
`tune`; `fresh`, of other seeds and other styles, is for the figures alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks import styles
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_scripts.demo import world
from lora_scripts.demo.evaluate import wilson
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.exchanged import asked, exchanged
from lora_scripts.families.table import load_pictures
from lora_scripts.grid.measures import as_pixels

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SETS = {"tune": (7000, 20, styles.TUNING), "fresh": (31000, 40, styles.FRESH), "later": (52000, 40, styles.LATER)}
"""First seed, how many, and the styles."""
KINDS = ("sentence", "tags", "one thing", "parts")
"""Of captions: the world's sentence; the same as tags; of one thing whose pictures are all alike, behind its word;
without colour and sky, so that some are the same."""


class Drawn(NamedTuple):
    """One set."""

    name: str
    style: str
    kind: str
    scenes: list[world.Scene]
    captions: list[str]


def drawn(which: str, number: int) -> Drawn:
    """A set by its number."""
    first, _, painters = SETS[which]
    seed = first + number
    rng = random.Random(f"exchanged/{seed}")
    style, kind = painters[number % len(painters)], KINDS[number // len(painters) % len(KINDS)]
    scenes = world.style_set(style, rng.randint(12, 16), seed=seed)
    if kind == "one thing":
        scenes = [replace(scene, object=scenes[0].object, colour=scenes[0].colour) for scene in scenes]
    return Drawn(f"{which}-{number:03d}", style, kind, scenes, [worded(scene, kind) for scene in scenes])


def worded(scene: world.Scene, kind: str) -> str:
    """The caption of a scene."""
    if kind == "tags":
        return f"{scene.colour} {scene.object}, {scene.ground}, {scene.sky.removeprefix('a ')}"
    if kind == "parts":
        return f"a {scene.object} on {scene.ground}"
    return f"zibbo, {world.caption(scene)}" if kind == "one thing" else world.caption(scene)


def planted(one: Drawn) -> list[int]:
    """Whose caption each picture gets: a tenth or a fifth of them, two at least, are exchanged or handed round."""
    rng = random.Random(f"planted/{one.name}")
    count = len(one.captions)
    bad = rng.sample(range(count), max(2, round(count * rng.choice([0.1, 0.2]))))
    order = list(range(count))
    for i, j in zip(bad, bad[1:] + bad[:1], strict=True):
        order[i] = j
    return order


def named(missed: Tensor, order: Sequence[int]) -> set[int]:
    """Pictures whose captions are told, when they are handed out in this order."""
    return {i for one in exchanged(missed[:, :, list(order)]) or [] for i in one.cycle}


def table(folder: Path, which: str) -> str:
    """Shares with 95 % intervals (Wilson), as Markdown."""
    rows: dict[str, list[tuple[bool, int, int, bool]]] = {}
    for number in range(SETS[which][1]):
        one = drawn(which, number)
        if not (path := folder / f"{one.name}.safetensors").exists():
            continue
        missed, order = load_file(path)["missed"], planted(one)
        at_fault = {i for i, j in enumerate(order) if one.captions[i] != one.captions[j]}
        told, told_planted = named(missed, range(len(order))), named(missed, order)
        judged = bool(told), len(at_fault), len(at_fault & told_planted), bool(told_planted - at_fault)
        for row in (one.style, one.kind, "all"):
            rows.setdefault(row, []).append(judged)
    lines = [
        "| sets | healthy: something was named | exchanged captions named | planted: others named |",
        "|---|---|---|---|",
    ]
    for row, found in sorted(rows.items(), key=lambda item: item[0] == "all"):
        n = len(found)
        cells = [share(sum(f[0] for f in found), n), share(sum(f[2] for f in found), sum(f[1] for f in found))]
        lines.append(f"| {row} ({n}) | {' | '.join([*cells, share(sum(f[3] for f in found), n)])} |")
    return "\n".join(lines)


def share(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits} of {count} = {hits / count:.0%} ({low:.0%} to {high:.0%})".replace("%", " %")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=SETS, default="fresh")
    parser.add_argument("--part", default="1/1", help="which of how many parts, for several at a time")
    args = parser.parse_args()
    if args.what == "table":
        print(table(args.folder, args.set))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    family = load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))
    part, of = map(int, args.part.split("/"))
    for number in range(SETS[args.set][1]):
        one = drawn(args.set, number)
        path = args.folder / f"{one.name}.safetensors"
        if number % of != part - 1 or path.exists():
            continue
        begun = time.time(), time.process_time()
        pictures = [as_pixels(styles.paint(scene, family.native_size[0])) for scene in one.scenes]
        missed = asked(family, pictures, one.captions, lambda: True)
        assert missed is not None
        save_file({"missed": missed.contiguous()}, path)
        spent = f"{time.time() - begun[0]:.0f} s, {time.process_time() - begun[1]:.0f} s of computing"
        print(path.name, one.style, one.kind, len(pictures), "pictures,", spent, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
