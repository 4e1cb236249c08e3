"""What a run is fed: its pictures with their captions, masks and class pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.masks import alpha_mask, find_masks, read_mask
from lora_scripts.data.scan import Sample
from lora_scripts.families.base import PictureFamily
from lora_scripts.train.feed import Feed, Picture, Settings, plan_pictures


def build_feed(
    config: TrainConfig, family: PictureFamily, samples: Sequence[Sample], of_class: Sequence[Sample] = ()
) -> Feed:
    """The feed of a config. UserErrors for masks that are missing."""
    c = config
    settings = Settings(
        c.batch_size,
        c.gradient_accumulation,
        c.repeats,
        c.seed,
        c.caption_dropout,
        c.shuffle_tags,
        c.keep_tags,
        tag_dropout=c.tag_dropout,
        mask=_masks(samples, c.mask_dir, c.mask_alpha),
        mask_background=c.mask_background,
    )
    pictures = [*_pictures(c, family, samples), *(_as_class(c, p) for p in _pictures(c, family, of_class))]
    return Feed(family, pictures, settings, cache_text=not (c.train_text_encoder or c.new_token))


def _pictures(c: TrainConfig, family: PictureFamily, samples: Sequence[Sample]) -> list[Picture]:
    step = family.facts.bucket_step
    return plan_pictures(samples, c.size, step, flip=c.flip, random_crop=c.random_crop, seed=c.seed)


def _as_class(c: TrainConfig, picture: Picture) -> Picture:
    return replace(picture, weight=c.prior_weight, of_class=True)


def _masks(samples: Sequence[Sample], folder: Path | None, alpha: bool) -> Callable[[Sample], Image.Image] | None:
    if alpha:
        return lambda sample: alpha_mask(sample.path)
    if folder is None:
        return None
    paths = find_masks(samples, folder)
    return lambda sample: read_mask(paths[sample.name], (sample.width, sample.height))
