"""How often `check --base` is right about strays: healthy and planted sets of the miniature world.

python -m benchmarks.strays run FOLDER [--set tune|later]     asks the base, a file for each set; goes on where it was
python -m benchmarks.strays table FOLDER [--set tune|later]   what was named, as a table

A set has 14 to 24 pictures of one style at the base's own size, every fourth one thing in many places. It is judged as
it is, and with a tenth or a fifth of it, two at least, drawn in other styles; captions stay. Limits are set on `tune`;
`later`, of other seeds and styles, is for the figures alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks import styles
from benchmarks.exchanged_captions import BASE, share
from safetensors.torch import load_file, save_file

from lora_scripts.demo import world
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.strays import described, strays
from lora_scripts.families.table import load_pictures
from lora_scripts.grid.measures import as_pixels

SETS = {"tune": (61000, 40, ("plain", *styles.TUNING, *styles.FRESH)), "later": (73000, 40, styles.LATER)}
"""First seed, how many, and the styles."""


class Drawn(NamedTuple):
    """One set."""

    name: str
    style: str
    scenes: list[world.Scene]
    captions: list[str]
    planted: dict[int, world.Scene]
    """The strays, in place of those at their numbers."""


def drawn(which: str, number: int) -> Drawn:
    """A set by its number."""
    first, _, painters = SETS[which]
    seed = first + number
    rng = random.Random(f"strays/{seed}")
    style = painters[number % len(painters)]
    count = rng.randint(14, 24)
    scenes = world.style_set(style, count, seed=seed)
    captions = [world.caption(scene) for scene in scenes]
    if number // len(painters) % 4 == 3:
        scenes = [replace(scene, object=scenes[0].object, colour=scenes[0].colour) for scene in scenes]
        captions = [f"zibbo, {world.caption(scene)}" for scene in scenes]
    bad = rng.sample(range(count), max(2, round(count * rng.choice([0.1, 0.2]))))
    others = [other for other in ("plain", *painters) if other != style]
    planted = {i: replace(scenes[i], style=rng.choice(others)) for i in bad}
    return Drawn(f"{which}-{number:03d}", style, scenes, captions, planted)


def table(folder: Path, which: str) -> str:
    """Shares with 95 % intervals (Wilson), as Markdown."""
    rows: dict[str, list[tuple[bool, int, int, bool]]] = {}
    for number in range(SETS[which][1]):
        one = drawn(which, number)
        if not (path := folder / f"{one.name}.safetensors").exists():
            continue
        kept = load_file(path)
        healthy, planted = (
            set(strays([kept[f"{which}.{n}"] for n in range(len(kept) // 2)])) for which in ("healthy", "planted")
        )
        bad = set(one.planted)
        judged = bool(healthy), len(bad), len(bad & planted), bool(planted - bad)
        for row in (one.style, "all"):
            rows.setdefault(row, []).append(judged)
    lines = ["| sets | healthy: something was named | strays named | planted: others named |", "|---|---|---|---|"]
    for row, found in sorted(rows.items(), key=lambda item: item[0] == "all"):
        n = len(found)
        cells = [share(sum(f[0] for f in found), n), share(sum(f[2] for f in found), sum(f[1] for f in found))]
        lines.append(f"| {row} ({n}) | {' | '.join([*cells, share(sum(f[3] for f in found), n)])} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=SETS, default="later")
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
        begun = time.process_time()
        pictures = [as_pixels(styles.paint(scene, family.native_size[0])) for scene in one.scenes]
        others = [as_pixels(styles.paint(scene, family.native_size[0])) for scene in one.planted.values()]
        healthy = described(family, pictures, one.captions, lambda: True)
        alien = described(family, others, [one.captions[i] for i in one.planted], lambda: True)
        assert healthy is not None and alien is not None
        places = torch.tensor(list(one.planted))
        planted = [whole.index_copy(0, places, some) for whole, some in zip(healthy, alien, strict=True)]
        both = {"healthy": healthy, "planted": planted}
        save_file({f"{which}.{n}": t.contiguous() for which, some in both.items() for n, t in enumerate(some)}, path)
        print(path.name, one.style, len(pictures), f"pictures, {time.process_time() - begun:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
