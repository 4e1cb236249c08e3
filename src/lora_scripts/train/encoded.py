"""Pictures and captions as tensors: encoded once into the cache, and read from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from lora_scripts.data.buckets import View
from lora_scripts.data.cache import Cache, cache_key
from lora_scripts.data.image import apply_view, load_rgb, load_rgba
from lora_scripts.data.masks import view_mask
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.families.base import REFERENCE, PictureFamily, stacked
from lora_scripts.train.ahead import ahead
from lora_scripts.train.asked import Said, all_said, grouped, make_caption, only, pixels_of, said
from lora_scripts.train.planned import Picture

KEPT = 256 * 2**20
"""Bytes of what is encoded that a run keeps in memory (700 pictures of 64 x 64 latents with captions of 77 tokens)."""

Entry = dict[str, Tensor]
"""What an encoder gave of one sample, by its names."""
Read = Mapping[str, Entry | None]
"""Entries that are read already, by their keys; None for one that is damaged or not there."""


class Unfed(UserError):
    """What was encoded can neither be read nor be encoded again. Nothing was moved: what is learnt can be saved."""


@contextmanager
def _feeding() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise Unfed(error.message, file=error.file, line=error.line, hint=error.hint) from None


@dataclass(frozen=True)
class Masks:
    """Which parts of pictures count."""

    of: Callable[[Sample], Image.Image]
    """A picture's mask."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Picture's name -> SHA-256 of the file of its mask, where that is a file of its own."""
    background: float = 0.0
    """How much the black of a mask counts, 0 … 1."""


@dataclass(frozen=True)
class _Missing:
    """What is to be made of a view: keys of the cache; empty for what is there."""

    picture: Picture
    view: View
    latents: str
    mask: str


class Encoded:
    """What a family's encoders give of pictures and their captions.

    `fill` sees to it that the cache has it all. What the cache does not keep in memory is read when it is asked for, so
    that memory does not grow with the pictures; Unfed for what can then neither be read nor be encoded again.
    """

    def __init__(
        self,
        family: PictureFamily,
        pictures: Sequence[Picture],
        masks: Masks | None,
        *,
        texts: bool,
        transparency: bool = True,
        dropped: bool = False,
    ) -> None:
        """`texts`: captions, too; `dropped`: as of `all_said`. `transparency`: as of pictures, if the family's VAE
        takes it."""
        self.family, self.pictures, self.masks, self.texts = family, pictures, masks, texts
        self.transparency = transparency and family.facts.transparent
        each = [*all_said(pictures, sees=family.facts.sees, dropped=dropped), Said("")] if texts else []
        self.asked = list(dict.fromkeys(each))
        """All that is cached of texts."""
        self._cached = frozenset(self.asked)
        self._cache: Cache | None = None
        self._vae = self._text_encoder = ""

    @property
    def cache(self) -> Cache:
        assert self._cache is not None, "not filled"
        return self._cache

    # --- before the first step ---------------------------------------------------------------------------------------

    def fill(self, cache: Cache, progress: Callable[[str, int, int], None]) -> None:
        """Sees to it that the cache has latents and masks of all views, and text states if `texts`.

        UserError for a picture or a mask that is no longer the one with the digest under which it would be kept, and
        for a picture of which the VAE makes numbers that are not finite: nothing of it is kept.
        """
        self._cache, self._vae = cache, self.family.fingerprint("vae")
        whole = [(one, one is own) for own in self.pictures for one in (own, *own.references)]
        done, total = 0, sum(len(one.views) for one, _ in whole)
        asked: set[str] = set()
        missing: list[_Missing] = []

        def lacking(key: str) -> str:
            if not key or key in asked or cache.ready(key):
                return ""
            asked.add(key)
            return key

        for picture, masked in whole:
            for view in picture.views:
                latents, mask = self._latents_key(picture, view), self._mask_key(picture, view) if masked else ""
                one = _Missing(picture, view, lacking(latents), lacking(mask))
                if one.latents or one.mask:
                    missing.append(one)
                else:
                    done += 1
                    progress("pictures", done, total)
        for one, (pixels, mask_entry) in ahead(missing, self._preparing()):
            if mask_entry is not None:
                cache.put(one.mask, mask_entry)
            if pixels is not None:
                cache.put(one.latents, self._encoded(one.picture, pixels))
            done += 1
            progress("pictures", done, total)
        if self.texts:
            self._fill_text(cache, progress)

    def _fill_text(self, cache: Cache, progress: Callable[[str, int, int], None]) -> None:
        self._text_encoder = self.family.fingerprint("text")
        for done, one in enumerate(self.asked, 1):
            make_caption(cache, self._text_encoder, one, self.family.encode_text)
            progress("captions", done, len(self.asked))

    def _preparing(self) -> Callable[[_Missing], tuple[Tensor | None, Entry | None]]:
        """What gives the pixels and the mask that are missing: a picture is decoded once for views that follow one
        another."""
        load, load_mask = lru_cache(1)(self._load), lru_cache(1)(self._whole_mask)

        def prepare(one: _Missing) -> tuple[Tensor | None, Entry | None]:
            sample = one.picture.sample
            pixels = apply_view(load(sample), one.view) if one.latents else None
            return pixels, self._cut_mask(load_mask(sample), one.view) if one.mask else None

        return prepare

    def _load(self, sample: Sample) -> Image.Image:
        return (load_rgba if self.transparency else load_rgb)(sample.path, sample.digest)

    def _encoded(self, picture: Picture, pixels: Tensor) -> Entry:
        entry = only(self.family.encode_image(pixels[None]))
        if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
            text = "the VAE makes numbers of it that are not finite (NaN or infinity)"
            raise UserError(text, file=picture.sample.path, hint="look at it, or give another vae")
        return entry

    def _whole_mask(self, sample: Sample) -> Image.Image:
        assert self.masks is not None
        return self.masks.of(sample)

    def _cut_mask(self, mask: Image.Image, view: View) -> Entry:
        assert self.masks is not None
        return {"mask": view_mask(mask, view, self.family.facts.vae_factor, self.masks.background)}

    # --- what is encoded ---------------------------------------------------------------------------------------------

    def latents(self, index: int, variant: int = 0, read: Read | None = None) -> Entry:
        """What the family's encoder gave of a view of a picture, by its names, each [c, h, w]; and its means of that
        view of what the picture is made from, as of `Batch`.

        `read`, as of `text`: entries that are read already, by their keys.
        """
        picture = self.pictures[index]
        made_from = [self._latents(one, variant, read)["mean"] for one in picture.references]
        return self._latents(picture, variant, read) | {f"{REFERENCE}{n}": mean for n, mean in enumerate(made_from)}

    def _latents(self, picture: Picture, variant: int, read: Read | None) -> Entry:
        view = picture.views[variant]

        def again() -> Entry:
            return self._encoded(picture, apply_view(self._load(picture.sample), view))

        return self._entry(self._latents_key(picture, view), read, again)

    def said(self, index: int, variant: int, caption: str) -> Said:
        """What is asked for a view of a picture with that caption."""
        return said(self.pictures[index], variant, caption, sees=self.family.facts.sees)

    def told(self, asked: Sequence[Said], read: Read | None = None) -> Entry:
        """What the family's text encoder gave of each, by its names, [n, ...]; of what is not cached (shuffled tags),
        gives now."""
        rows = {one: self._text(one, read) for one in dict.fromkeys(asked) if one in self._cached}
        for beside, new in grouped(one for one in dict.fromkeys(asked) if one not in rows).items():
            encoded = self.family.encode_text([one.caption for one in new], pixels_of(beside))
            rows |= {one: {name: t[i] for name, t in encoded.items()} for i, one in enumerate(new)}
        return stacked([rows[one] for one in asked])

    def _text(self, one: Said, read: Read | None) -> Entry:
        again = lambda: only(self.family.encode_text([one.caption], pixels_of(one.beside)))  # noqa: E731
        return self._entry(one.key(self._text_encoder), read, again)

    def mask(self, index: int, variant: int, read: Read | None = None) -> Tensor:
        """[1, h, w]; a picture that counts as a whole (of the class) has none of its own."""
        picture = self.pictures[index]
        view, factor = picture.views[variant], self.family.facts.vae_factor
        if picture.of_class:
            return torch.ones(1, view.bucket[1] // factor, view.bucket[0] // factor)
        key = self._mask_key(picture, view)
        return self._entry(key, read, lambda: self._cut_mask(self._whole_mask(picture.sample), view))["mask"]

    @_feeding()
    def _entry(self, key: str, read: Read | None, again: Callable[[], Entry]) -> Entry:
        """From what is read, or from the cache; one that is damaged there, or went, is made again."""
        entry = (read or {}).get(key) or self.cache.get(key)
        if entry is None:
            self.cache.drop(key)
            entry = again()
            self.cache.put(key, entry)
            self.family.rest(text_encoder=self.texts)
        return entry

    def _latents_key(self, picture: Picture, view: View) -> str:
        vae, kind = self._vae, "latents of four" if self.transparency else "latents"
        return cache_key(kind, picture.sample.digest, vae, repr(view))

    def _mask_key(self, picture: Picture, view: View) -> str:
        """Empty for a picture without a mask of its own."""
        masks, sample = self.masks, picture.sample
        if masks is None or picture.of_class:
            return ""
        digest = masks.digests.get(sample.name)
        source = ("alpha", sample.digest) if digest is None else ("file", digest)
        size, factor = (sample.width, sample.height), self.family.facts.vae_factor
        return cache_key("mask", source, size, repr(view), factor, masks.background)

    @_feeding()
    def read(self, wanted: Iterable[tuple[int, int, str]]) -> Read:
        """The entries of (picture, view, caption) that are cached. Touches no model."""
        keys: set[str] = set()
        for index, variant, caption in wanted:
            picture = self.pictures[index]
            view = picture.views[variant]
            keys |= {self._latents_key(picture, view), self._mask_key(picture, view)}
            keys |= {self._latents_key(one, one.views[variant]) for one in picture.references}
            if (asked := self.said(index, variant, caption)) in self._cached:
                keys.add(asked.key(self._text_encoder))
        return {key: self.cache.get(key) for key in keys if key}
