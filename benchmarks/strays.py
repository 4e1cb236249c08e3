"""How often `check --base` is right about strays: healthy and planted sets of the miniature world.

python -m benchmarks.strays run FOLDER [--set SET]     asks the base, a file for each set; goes on where it was
python -m benchmarks.strays table FOLDER [--set SET]   what was named, as a table

A set has 14 to 24 pictures of one style at the base's own size, every fourth one thing in many places. It is judged as
it is, and with a tenth or a fifth of it, two at least, drawn in other styles; captions stay. Limits are set on `tune`,
`later`, `third`, `last`, `final`, `final2`, `final3` and `final4`; `final5`, of other seeds and styles, is for
the figures alone.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from benchmarks import styles
from benchmarks.planted import Judged, Kept, command

from lora_scripts.demo import world
from lora_scripts.families.strays import described, strays
from lora_scripts.grid.measures import as_pixels

SETS = {
    "tune": (61000, 40, ("plain", *styles.TUNING, *styles.FRESH)),
    "later": (73000, 40, styles.LATER),
    "third": (87000, 40, styles.THIRD),
    "last": (99000, 40, styles.LAST),
    "final": (113000, 80, styles.FINAL),
    "final2": (131000, 80, styles.FINAL2),
    "final3": (151000, 160, styles.FINAL3),
    "final4": (173000, 160, styles.FINAL4),
    "final5": (197000, 160, styles.FINAL5),
}
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


def ask(family: Any, one: Drawn) -> Kept:
    pictures = [as_pixels(styles.paint(scene, family.native_size[0])) for scene in one.scenes]
    others = [as_pixels(styles.paint(scene, family.native_size[0])) for scene in one.planted.values()]
    healthy = described(family, pictures, one.captions, lambda: True)
    alien = described(family, others, [one.captions[i] for i in one.planted], lambda: True)
    assert healthy is not None and alien is not None
    places = torch.tensor(list(one.planted))
    planted = [whole.index_copy(0, places, some) for whole, some in zip(healthy, alien, strict=True)]
    both = {"healthy": healthy, "planted": planted}
    return {f"{name}.{n}": t for name, some in both.items() for n, t in enumerate(some)}


def judge(one: Drawn, kept: Kept) -> list[Judged]:
    """As it was planted; and with the first of its strays alone, the others being what they were."""
    healthy, planted = ([kept[f"{name}.{n}"] for n in range(len(kept) // 2)] for name in ("healthy", "planted"))
    first = torch.tensor([next(iter(one.planted))])
    alone = [whole.index_copy(0, first, some[first]) for whole, some in zip(healthy, planted, strict=True)]
    blamed = bool(strays(healthy))

    def judged(rows: tuple[str, ...], descriptions: list[torch.Tensor], bad: set[int]) -> Judged:
        named = set(strays(descriptions))
        return Judged(rows, blamed, len(bad), len(bad & named), bool(named - bad))

    return [judged((one.style, "all"), planted, set(one.planted)), judged(("one alone",), alone, set(first.tolist()))]


def main() -> int:
    return command(__doc__, "strays", SETS, "final5", drawn, ask, judge)


if __name__ == "__main__":
    sys.exit(main())
