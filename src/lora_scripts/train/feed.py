"""What the loop is fed: cached latents and captions, put together into batches that are functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from PIL import Image
from torch import Tensor, nn

from lora_scripts.data.buckets import Size, View, bucket_sizes, choose_bucket, views
from lora_scripts.data.cache import Cache, cache_key
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.loader import caption_for, draw, epoch_batches, pieces, seed_of
from lora_scripts.data.masks import view_mask
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.families.base import Batch, PictureFamily, Place


@dataclass(frozen=True)
class Picture:
    """One training picture: what it is and the views of it that are trained."""

    sample: Sample
    bucket: Size
    views: list[View]
    weight: float = 1.0
    """How much its loss counts."""
    of_class: bool = False
    """A picture of the class, which keeps the model from forgetting it: it has no mask."""


@dataclass(frozen=True)
class Settings:
    """The part of the config that decides what is fed."""

    batch_size: int
    accumulation: int
    repeats: int
    seed: int
    caption_dropout: float
    shuffle_tags: bool
    keep_tags: int
    tag_dropout: float = 0.0
    mask: Callable[[Sample], Image.Image] | None = None
    """A picture's mask, where there are any."""
    mask_digests: Mapping[str, str] = field(default_factory=dict)
    """Picture's name -> SHA-256 of the file of its mask, where that is a file of its own."""
    mask_background: float = 0.0
    """How much the black of a mask counts, 0 … 1."""


def plan_pictures(
    samples: Sequence[Sample], resolution: Size, step: int, *, flip: bool, random_crop: bool, seed: int
) -> list[Picture]:
    """Gives each sample its bucket and views."""
    buckets, out = bucket_sizes(resolution, step), []
    for index, sample in enumerate(samples):
        size = (sample.width, sample.height)
        bucket = choose_bucket(size, buckets)
        seen = views(size, bucket, flip=flip, random_crop=random_crop, seed=seed, index=index)
        out.append(Picture(sample, bucket, seen))
    return out


@dataclass
class Feed:
    """Batches for a family. `fill` computes or reads what can be cached; `steps` then touches no file."""

    family: PictureFamily
    pictures: list[Picture]
    settings: Settings
    cache_text: bool
    latents: list[list[dict[str, Tensor]]] = field(default_factory=list)
    """[picture][view] -> what the family's encoder gave, by its names, each [c, h, w]"""
    masks: list[list[Tensor]] = field(default_factory=list)
    """[picture][view] -> [1, h, w]; empty without masks"""
    texts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """caption -> what the family's text encoder gave, by its names"""

    def fill(self, cache: Cache, progress: Callable[[str, int, int], None]) -> None:
        """Latents of all views, and text states if `cache_text`, from the cache or computed into it.

        UserError for a picture that is no longer the one with the sample's digest, under which it would be kept, and
        for one of which the VAE makes numbers that are not finite: nothing of it is kept.
        """
        vae, total = self.family.fingerprint("vae"), sum(len(p.views) for p in self.pictures)
        done = 0
        for picture in self.pictures:
            image, row = None, []
            for view in picture.views:
                key = cache_key("latents", picture.sample.digest, vae, repr(view))
                entry = cache.get(key)
                if entry is None:
                    image = image or load_rgb(picture.sample.path, picture.sample.digest)
                    entry = _only(self.family.encode_image(apply_view(image, view)[None]))
                    if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
                        text = "the VAE makes numbers of it that are not finite (NaN or infinity)"
                        raise UserError(text, file=picture.sample.path, hint="look at it, or give another vae")
                    cache.put(key, entry)
                row.append(entry)
                done += 1
                progress("pictures", done, total)
            self.latents.append(row)
            if self.settings.mask is not None:
                self.masks.append(self._masks(picture))
        if self.cache_text:
            self._fill_text(cache, progress)

    def _fill_text(self, cache: Cache, progress: Callable[[str, int, int], None]) -> None:
        text = self.family.fingerprint("text")
        captions = list(dict.fromkeys([p.sample.caption for p in self.pictures] + [""]))
        for done, caption in enumerate(captions, 1):
            self.texts[caption] = caption_entry(cache, text, caption, self.family.encode_text)
            progress("captions", done, len(captions))

    def _masks(self, picture: Picture) -> list[Tensor]:
        """One for each view; a picture that counts as a whole (of the class) has none of its own."""
        assert self.settings.mask is not None
        factor, background = self.family.facts.vae_factor, self.settings.mask_background
        if picture.of_class:
            return [torch.ones(1, v.bucket[1] // factor, v.bucket[0] // factor) for v in picture.views]
        mask = self.settings.mask(picture.sample)
        return [view_mask(mask, view, factor, background) for view in picture.views]

    def batches(self, epoch: int) -> list[list[int]]:
        s = self.settings
        buckets = [p.bucket for p in self.pictures]
        return epoch_batches(buckets, batch_size=s.batch_size, repeats=s.repeats, seed=s.seed, epoch=epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; a window of accumulated batches does not reach into the next epoch."""
        return -(-len(self.batches(0)) // self.settings.accumulation)

    def steps(self, first: int, total: int, most: int | None = None) -> Iterator[tuple[int, list[Batch]]]:
        """(epoch, the batches of one optimizer step) for steps first … total - 1.

        With `most` each batch comes in pieces of at most so many pictures: the same pictures, drawn alike.
        """
        per_epoch = self.steps_per_epoch
        for epoch in range(first // per_epoch, -(-total // per_epoch)):
            batches, size = self.batches(epoch), self.settings.accumulation
            skip = first - epoch * per_epoch if epoch == first // per_epoch else 0
            position = sum(len(b) for b in batches[: skip * size])
            for window in islice(range(0, len(batches), size), skip, None):
                ready = []
                for indices in batches[window : window + size]:
                    for piece in pieces(indices, most):
                        ready.append(self._batch(epoch, position, piece))
                        position += len(piece)
                yield epoch, ready

    def _batch(self, epoch: int, start: int, indices: Sequence[int]) -> Batch:
        s, latents, captions, generators, masks, places = self.settings, [], [], [], [], []
        names = [self.pictures[index].sample.name for index in indices]
        for position, index in enumerate(indices, start):
            row = self.latents[index]
            drawn = draw(s.seed, epoch, position, index, variants=len(row), caption_dropout=s.caption_dropout)
            latents.append(row[drawn.variant])
            places.append(place_of(self.pictures[index].sample, self.pictures[index].views[drawn.variant]))
            place = f"{s.seed}/{epoch}/{position}/{index}"
            caption = "" if drawn.drop_caption else self.pictures[index].sample.caption
            captions.append(
                caption_for(caption, shuffle=s.shuffle_tags, keep=s.keep_tags, rng_key=place, dropout=s.tag_dropout)
            )
            if self.masks:
                masks.append(self.masks[index][drawn.variant])
            generators.append(generator(f"noise/{place}"))
        weights = [self.pictures[index].weight for index in indices]
        return Batch(
            stacked(latents),
            captions,
            self.texts_of(captions),
            names,
            generators,
            places=places,
            masks=torch.stack(masks) if masks else None,
            weights=torch.tensor(weights) if set(weights) != {1.0} else None,
        )

    def texts_of(self, captions: Sequence[str]) -> dict[str, Tensor] | None:
        """The encoded captions, from memory or encoded now; None where the text encoder is trained."""
        if not self.cache_text:
            return None
        unknown = [c for c in dict.fromkeys(captions) if c not in self.texts]  # shuffled tags
        rows = dict(self.texts)
        if unknown:
            encoded = self.family.encode_text(unknown)
            rows |= {c: {name: t[i] for name, t in encoded.items()} for i, c in enumerate(unknown)}
        return stacked([rows[c] for c in captions])


def caption_entry(
    cache: Cache, fingerprint: str, caption: str, encode: Callable[[Sequence[str]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What a text encoder with that fingerprint gives of a caption, from the cache or computed into it."""
    key = cache_key("text", fingerprint, caption)
    entry = cache.get(key)
    if entry is None:
        entry = _only(encode([caption]))
        cache.put(key, entry)
    return entry


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """n tables of tensors [...] as one of tensors [n, ...]; of texts of different lengths the shorter ones are filled
    up with zeros."""
    return {name: _stack([row[name] for row in rows]) for name in rows[0]}


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def place_of(sample: Sample, view: View) -> Place:
    """Where in its picture, mirrored as the view is, a view lies."""
    left = view.scaled[0] - view.bucket[0] - view.left if view.flip else view.left
    return Place((sample.width, sample.height), (left, view.top), view.bucket)


def _only(encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The one row of what an encoder gave."""
    return {name: value[0].contiguous() for name, value in encoded.items()}


def generator(key: str) -> torch.Generator:
    """A CPU generator whose state is a function of a text, the same on every machine."""
    return torch.Generator().manual_seed(seed_of(key))
