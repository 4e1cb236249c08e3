"""Whether a LoRA draws copies: it is asked for pictures that it was trained on, and for such that it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.buckets import View
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.families.base import PictureFamily
from lora_scripts.report.data import Nearest, NearPair
from lora_scripts.run.after.worn import Worn
from lora_scripts.run.previews import Preview, usual
from lora_scripts.train import memorised
from lora_scripts.train.feed import Feed
from lora_scripts.train.memorised import Asked

MOST = 4
"""Captions that are drawn of the pictures trained, and as many of those held out."""
SHOWN = 3
"""The closest pairs, side by side."""


@dataclass(frozen=True)
class Question:
    """A caption to be drawn, and the picture that it describes."""

    preview: Preview
    sample: Sample
    trained: bool


def questions(config: TrainConfig, trained: Sequence[Sample], held: Sequence[Sample]) -> list[Question]:
    """The first captions of both, each once; those trained are the previews of a config that names none. None of
    pictures that are made from others: to draw such a one again is what is wanted."""
    found: list[Question] = []
    for samples in (trained, held):
        first = {s.caption: s for s in reversed(samples) if s.caption}
        some = [s for s in samples if first.get(s.caption) is s and not s.references][:MOST]
        for sample in some:
            preview = replace(usual(config), prompt=sample.caption, seed=config.seed + len(found))
            found.append(Question(preview, sample, samples is trained))
    return found


def look(
    worn: Worn, config: TrainConfig, feed: Feed, held: Feed, drawn: Mapping[Preview, Image.Image]
) -> Nearest | None:
    """Asks, compares, and tells; None where there is too little to compare. `drawn`: what is drawn already."""
    pictures = [(i, p) for i, p in enumerate(feed.pictures) if not p.of_class]
    asked = questions(config, [p.sample for _, p in pictures], [p.sample for p in held.pictures])
    if len(pictures) < 2 or not asked:
        return None
    images = dict(drawn) | {q.preview: worn.draw(q.preview, 1.0) for q in asked if q.preview not in drawn}
    train = memorised.features(feed.encoded.latents(i)["mean"] for i, _ in pictures)
    means = (held.encoded.latents(i)["mean"] for i in range(len(held.pictures)))
    outside = memorised.features(means) if held.pictures else None
    mine = memorised.features(_encoded(worn.family, image) for image in images.values())
    places = {
        sample.name: n for n, sample in enumerate([p.sample for _, p in pictures] + [p.sample for p in held.pictures])
    }
    keys = list(images)
    own = [Asked(keys.index(q.preview), places[q.sample.name], q.trained) for q in asked]
    found = memorised.compare(mine, train, outside, own)
    shown = []
    for pair in found.pairs[:SHOWN]:
        preview, sample = keys[pair.drawn], pictures[pair.train][1].sample
        note = f"{preview.prompt} · seed {preview.seed} · distance {pair.distance:.2f}"
        if (real := thumbnail(sample.path, 512)) is not None:
            shown.append(NearPair(images[preview], real, sample.name, note))
    return Nearest(memorised.verdict(found), shown)


def still_there(path: Path) -> Image.Image | None:
    """A picture that was trained on; None where it can no longer be read: somebody may have moved it since the first
    step, and a run that is through does without it."""
    try:
        return load_rgb(path)
    except UserError:
        return None


def thumbnail(path: Path, side: int) -> Image.Image | None:
    """A picture of at most `side` pixels; None as above."""
    image = still_there(path)
    if image is not None:
        image.thumbnail((side, side))
    return image


def _encoded(family: PictureFamily, image: Image.Image) -> Tensor:
    """The mean of its latents, [c, h, w]."""
    view = View(image.size, image.size, 0, 0, flip=False)
    return family.encode_image(apply_view(image, view)[None])["mean"][0]
