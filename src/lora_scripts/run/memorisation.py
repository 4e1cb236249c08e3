"""Whether the pictures that a finished LoRA draws are copies of those it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from lora_scripts.data.buckets import View
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.families.base import PictureFamily
from lora_scripts.report.data import Nearest, NearPair
from lora_scripts.train import memorised

if TYPE_CHECKING:
    from lora_scripts.run.story import Run

MORE = 4
"""Pictures that are drawn for this alone: captions of held-out pictures, or of the data set where there are none."""
SHOWN = 3
"""The closest pairs, side by side."""


def captions(run: Run, drawn: Sequence[str]) -> list[str]:
    """What to draw besides the previews' prompts."""
    if not run.held.on:
        return []
    usable = [s.caption for s in (*run.held_out, *run.samples) if s.caption and s.caption not in drawn]
    return list(dict.fromkeys(usable))[:MORE]


def nearest(run: Run, drawn: Mapping[tuple[str, int], Image.Image]) -> Nearest | None:
    """The verdict on pictures by (prompt, seed); None where there is too little to compare."""
    pictures = [(i, p) for i, p in enumerate(run.feed.pictures) if not p.of_class]
    if len(pictures) < 2 or not drawn:
        return None
    train = memorised.features([run.feed.latents[i][0]["mean"] for i, _ in pictures])
    latents = [row[0]["mean"] for row in run.held.feed.latents]
    held = memorised.features(latents) if latents else None
    mine = memorised.features([_encoded(run.family, image) for image in drawn.values()])
    found = memorised.pairs(mine, train, held)
    words = memorised.verdict(found)
    keys, shown = list(drawn), []
    for pair in found[:SHOWN]:
        prompt, seed = keys[pair.drawn]
        sample = pictures[pair.train][1].sample
        image = load_rgb(sample.path)
        image.thumbnail((512, 512))
        note = f"{prompt} · seed {seed} · distance {pair.distance:.2f}"
        if pair.outside is not None:
            note += f", to the nearest held-out picture {pair.outside:.2f}"
        shown.append(NearPair(drawn[keys[pair.drawn]], image, sample.name, note))
    return Nearest(words, shown)


def _encoded(family: PictureFamily, image: Image.Image) -> Tensor:
    """The mean of its latents, [c, h, w]."""
    size = image.size
    return family.encode_image(apply_view(image, View(size, size, 0, 0, flip=False))[None])["mean"][0]
