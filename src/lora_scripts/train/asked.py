"""What a text encoder is asked for pictures: their captions, and where it sees, what they are made from beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lora_scripts.data.buckets import View
from lora_scripts.data.cache import Cache, cache_key
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.scan import Sample
from lora_scripts.families.base import Conditions
from lora_scripts.train.planned import Picture

Beside = tuple[tuple[Sample, View], ...]
"""Views of pictures."""


@dataclass(frozen=True)
class Said:
    """What a text encoder is asked: a caption, and the views of pictures that it is shown beside it."""

    caption: str
    beside: Beside = ()

    def key(self, fingerprint: str) -> str:
        """Where the cache has what a text encoder with that fingerprint gives."""
        if not self.beside:
            return cache_key("text", fingerprint, self.caption)
        shown = tuple((sample.digest, repr(view)) for sample, view in self.beside)
        return cache_key("text beside pictures", fingerprint, self.caption, shown)


def said(picture: Picture, variant: int, caption: str, *, sees: bool) -> Said:
    """Of a view of a picture; `sees`: whether the text encoder is shown what that is made from."""
    beside = ((one.sample, one.views[variant]) for one in picture.references) if sees else ()
    return Said(caption, tuple(beside))


def all_said(pictures: Sequence[Picture], *, sees: bool, dropped: bool) -> list[Said]:
    """All that is asked for pictures, each once; `dropped`: whether they are also shown without their captions."""
    each = [
        said(picture, variant, caption, sees=sees)
        for picture in pictures
        for variant in range(len(picture.views) if sees else 1)
        for caption in (picture.sample.caption, "" if dropped else None, picture.preserved)
        if caption is not None
    ]
    return list(dict.fromkeys(each))


def grouped(asked: Iterable[Said]) -> dict[Beside, list[Said]]:
    """Those together that are shown the same."""
    out: dict[Beside, list[Said]] = {}
    for one in asked:
        out.setdefault(one.beside, []).append(one)
    return out


def pixels_of(beside: Beside) -> list[Tensor]:
    """Each [3, h, w] in [-1, 1]. UserError for a picture that is no longer the same."""
    return [apply_view(load_rgb(sample.path, sample.digest), view) for sample, view in beside]


def make_caption(
    cache: Cache, fingerprint: str, asked: Said, encode: Callable[[Sequence[str], Sequence[Tensor]], Conditions]
) -> None:
    """Sees to it that the cache has what a text encoder with that fingerprint gives."""
    key = asked.key(fingerprint)
    if not cache.ready(key):
        cache.put(key, only(encode([asked.caption], pixels_of(asked.beside))))


def only(encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The one row of what an encoder gave."""
    return {name: value[0].contiguous() for name, value in encoded.items()}
