"""What a base says of a data set: detail that it cannot draw, strays, and captions that fit one another's pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from lora_scripts.data.buckets import Size, views
from lora_scripts.data.findings import Finding
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Progress, Sink
from lora_scripts.families import strays
from lora_scripts.families.detail import KEPT, kept_detail
from lora_scripts.families.exchanged import LEAST, LEVELS, MOST, Exchanged, asked, exchanged
from lora_scripts.units import percent

if TYPE_CHECKING:
    from torch import Tensor

    from lora_scripts.families.base import PictureFamily

MINUTES = 20
"""That the base may be asked about captions; where it would take longer, nothing is said of them."""
SURE, STRAY_SURE = 0.8, 0.6
"""Of exchanged captions, and of strays: as docs/check.md has it."""


def undrawable(family: PictureFamily, images: Mapping[str, Path], resolution: Size, sink: Sink) -> list[Finding]:
    """What the base cannot draw, of some pictures."""
    kept = kept_detail(family, images, resolution, sink)
    if not kept or median(kept.values()) >= KEPT:
        return []
    share = f"{percent(max(0.0, median(kept.values())))}"
    message = f"your base cannot draw this detail: its VAE keeps {share} of the finest lines (median of {len(kept)})"
    mend = "another VAE (vae: FILE), a higher resolution, or another base: no training brings it back"
    return [Finding("undrawable", "warning", tuple(sorted(kept, key=lambda name: kept[name])), message, mend)]


def captions_exchanged(
    family: PictureFamily, images: Mapping[str, Path], captions: Mapping[str, str], sink: Sink
) -> list[Finding]:
    """Captions that seem to belong to one another's pictures; `captions`: of pictures that have one."""
    names = [name for name in images if captions.get(name)]
    if len(names) < LEAST:
        return []
    clock = _Clock(len(LEVELS) * len(names), sink, "pictures with every caption")
    found = []
    for group in neighbours(names):
        pixels = _all_seen(family, group, images)
        missed = asked(family, list(pixels.values()), [captions[name] for name in pixels], clock.step)
        if missed is None:
            sink(Note(f"exchanged captions are not looked for: it would take {clock.minutes} min on this machine"))
            return []
        told = exchanged(missed)
        if told is None:
            sink(Note("the base hardly tells the captions of these pictures apart, so none is said to be exchanged"))
        found += [_finding(one, list(pixels)) for one in told or ()]
    return found


def unlike(family: PictureFamily, images: Mapping[str, Path], captions: Mapping[str, str], sink: Sink) -> list[Finding]:
    """Pictures that are unlike the others of the set; `captions`: of pictures that have one."""
    pixels = _all_seen(family, [name for name in images if captions.get(name)], images)
    names = list(pixels)
    if len(names) < strays.LEAST:
        return []
    clock = _Clock(strays.steps(family, list(pixels.values())), sink, "pictures with their own captions")
    found = strays.described(family, list(pixels.values()), [captions[name] for name in names], clock.step)
    if found is None:
        sink(Note(f"pictures unlike the others are not looked for: it would take {clock.minutes} min on this machine"))
        return []
    message = "unlike the others in style, in what it shows, or in what its caption says"
    mend = "look whether it belongs to this set, and its caption to it"
    return [Finding("stray", "note", (names[i],), message, mend, STRAY_SURE) for i in strays.strays(found)]


def neighbours(names: Sequence[str]) -> list[Sequence[str]]:
    """The names in as few parts as hold `MOST` at most, in their order and of equal length to within one."""
    parts = -(-len(names) // MOST)
    bounds = [len(names) * part // parts for part in range(parts + 1)]
    return [names[first:last] for first, last in pairwise(bounds)]


class _Clock:
    """Tells how far it is, and stops what would take too long."""

    def __init__(self, steps: int, sink: Sink, words: str) -> None:
        self.steps, self.sink, self.words, self.done, self.begun = steps, sink, words, 0, 0.0

    @property
    def minutes(self) -> int:
        """What all of it takes, by what it took so far; the first step, which is slow, aside."""
        return round((time.monotonic() - self.begun) / max(1, self.done - 1) * self.steps / 60)

    def step(self) -> bool:
        """One more is done; whether to go on."""
        self.done += 1
        if self.done == 1:
            self.begun = time.monotonic()
        self.sink(Progress(self.words, self.done, self.steps))
        return self.minutes <= MINUTES


def _all_seen(family: PictureFamily, names: Iterable[str], images: Mapping[str, Path]) -> dict[str, Tensor]:
    return {name: seen for name in names if (seen := _seen(family, images[name])) is not None}


def _seen(family: PictureFamily, path: Path) -> Tensor | None:
    """The picture at the base's own size, cut to its shape; None for one that cannot be read: others tell that."""
    try:
        image = load_rgb(path)
    except UserError:
        return None
    view = views(image.size, family.native_size, flip=False, random_crop=False, seed=0, index=0)[0]
    return apply_view(image, view)


def _finding(one: Exchanged, names: list[str]) -> Finding:
    files = tuple(names[i] for i in one.cycle)
    if len(files) == 2:
        message = "these two captions seem to be exchanged: the base finds each in the other's picture"
    else:
        message = f"these {len(files)} captions seem to be mixed up: the base finds each in the picture named before it"
    return Finding("captions_exchanged", "warning", files, message, "look at them, and put each where it belongs", SURE)
