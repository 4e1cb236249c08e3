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

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks import styles
from benchmarks.planted import Judged, Kept, command
from torch import Tensor

from lora_scripts.demo import world
from lora_scripts.families.exchanged import asked, exchanged
from lora_scripts.grid.measures import as_pixels

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


def ask(family: Any, one: Drawn) -> Kept:
    pictures = [as_pixels(styles.paint(scene, family.native_size[0])) for scene in one.scenes]
    missed = asked(family, pictures, one.captions, lambda: True)
    assert missed is not None
    return {"missed": missed}


def judge(one: Drawn, kept: Kept) -> list[Judged]:
    missed, order = kept["missed"], planted(one)
    at_fault = {i for i, j in enumerate(order) if one.captions[i] != one.captions[j]}
    told, told_planted = named(missed, range(len(order))), named(missed, order)
    rows, right = (one.style, one.kind, "all"), at_fault & told_planted
    return [Judged(rows, bool(told), len(at_fault), len(right), bool(told_planted - at_fault))]


def main() -> int:
    return command(__doc__, "exchanged captions", SETS, "fresh", drawn, ask, judge)


if __name__ == "__main__":
    sys.exit(main())
