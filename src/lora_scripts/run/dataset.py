"""The pictures of a run: those that stand for the class, and how all become a feed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.loader import check_numbered, repeats_of
from lora_scripts.data.masks import alpha_mask, find_masks, read_mask
from lora_scripts.data.scan import Sample, scan
from lora_scripts.data.trigger import calling, without
from lora_scripts.events import Progress, Sink
from lora_scripts.families.base import PictureFamily
from lora_scripts.formats import io
from lora_scripts.run.previews import usual
from lora_scripts.train.encoded import Masks
from lora_scripts.train.feed import Feed, Settings
from lora_scripts.train.planned import Picture, plan_pictures
from lora_scripts.units import number_of
from lora_scripts.utf8 import read_bytes

CLASS = "class/"
"""In the names of class pictures, to tell them from the others."""
DRAWN_FROM = "drawn from"
"""In a class picture's PNG: what it is a function of."""
STEP_COST = 2.3
"""A step's time for one picture, in forward passes; measured: 2.1 to 2.3 on a CPU."""
ASKED = 0.5
"""The same of asking the base, without adapters and gradient, as measured there."""


# --- of the class (prior preservation; Ruiz et al. 2022, eq. 2) -------------------------------------------------------


def class_samples(
    config: TrainConfig, family: PictureFamily, folder: Path, sink: Sink, base: Sequence[str] = ()
) -> list[Sample]:
    """The class pictures of a run: those of `class_data_dir`, and new ones in `folder` until there are `class_images`.

    The family must not wear its LoRA yet, or wear it unchanged. Picture n is a function of `base` (digests of what the
    family was read from), prompt, sampling, seed and n, and says so: a run that was interrupted goes on with the same,
    and what an earlier start drew from anything else is drawn anew. One that says nothing is a person's, and stays.
    """
    samples = _of_class(config.class_data_dir, config) if config.class_data_dir else []
    missing = max(0, config.class_images - len(samples))
    if missing:
        step = family.facts.size_step
        size = (config.size[0] // step * step, config.size[1] // step * step)
        sampling = replace(usual(config).sampling, size=size)
        for n in range(missing):
            path, prompt, seed = folder / f"{n:05}.png", config.class_prompt, config.seed + n
            drawing = (seed, *size, sampling.steps, sampling.cfg, sampling.negative, config.family_settings)
            asked = (*base, prompt, *drawing)
            mark = json.dumps(asked, ensure_ascii=False)
            if not path.exists() or _mark_of(path) not in (mark, None):
                told = PngInfo()
                told.add_itxt(DRAWN_FROM, mark)
                io.save_png(path, family.generate(prompt, seed, sampling), told)
            sink(Progress("class pictures", n + 1, missing))
        samples += _of_class(folder, config)[:missing]
    return samples


def _mark_of(path: Path) -> str | None:
    with suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:  # what is damaged is told by the scan
        found = image.info.get(DRAWN_FROM)
        return None if found is None else str(found)
    return None


def _of_class(folder: Path, config: TrainConfig) -> list[Sample]:
    samples = scan(folder, None, allow_missing_captions=bool(config.class_prompt))
    if config.folder_repeats:
        check_numbered((s.name for s in samples), any_needed=False)
    return [replace(s, name=CLASS + s.name, caption=s.caption or config.class_prompt) for s in samples]


# --- the feed ---------------------------------------------------------------------------------------------------------


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
        preserve=c.preserve_weight or 0.0,
        preserve_every=c.preserve_every,
        masks=_masks(samples, c),
        transparency=not c.mask_alpha,
    )
    steps = family.facts.bucket_steps
    pictures = [*preserving(c, planned(c, steps, samples)), *(_as_class(c, p) for p in planned(c, steps, of_class))]
    # Of a base with a language model, whose states never change, that is cached whatever else is trained.
    cached = "language" in family.facts.features or not (c.train_text_encoder or c.new_token)
    return Feed(family, pictures, settings, cache_text=cached)


def planned(c: TrainConfig, steps: tuple[int, int], samples: Sequence[Sample]) -> list[Picture]:
    """Those that are trained; `steps`: as `Facts.bucket_steps`."""
    pictures = plan_pictures(samples, c.size, steps, flip=c.flip, random_crop=c.random_crop, seed=c.seed)
    if not c.folder_repeats:
        return pictures
    return [replace(p, repeats=repeats_of(p.sample.name.removeprefix(CLASS))) for p in pictures]


def _as_class(c: TrainConfig, picture: Picture) -> Picture:
    return replace(picture, weight=c.prior_weight, of_class=True)


def _masks(samples: Sequence[Sample], c: TrainConfig) -> Masks | None:
    if c.mask_alpha:
        return Masks(lambda sample: alpha_mask(sample.path, sample.digest), background=c.mask_background)
    if c.mask_dir is None:
        return None
    paths = find_masks(samples, c.mask_dir)
    digests = {name: hashlib.sha256(read_bytes(path)).hexdigest() for name, path in paths.items()}
    return Masks(lambda s: read_mask(paths[s.name], (s.width, s.height), digests[s.name]), digests, c.mask_background)


# --- what stays as the base has it, where nothing calls the LoRA ------------------------------------------------------


def preserving(c: TrainConfig, pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures that are trained, with the captions under which the base's answer to them stays, where that is asked
    for: their own without what calls the LoRA; those whose captions lack that have none."""
    captions = [p.sample.caption for p in pictures]
    trigger = calling(c.named_words, captions)
    if c.preserve_weight is None or trigger is None:
        return [*pictures]
    words, instead = trigger.words, c.preserve_word
    return [
        replace(p, preserved=without(caption, words, instead)) if trigger.stands_in(caption) else p
        for p, caption in zip(pictures, captions, strict=True)
    ]


def step_cost(config: TrainConfig) -> float:
    """Forward passes that training a picture takes: where the base's answer is to stay, it is asked, and what it said
    is trained, in every so many steps."""
    return STEP_COST + (0 if config.preserve_weight is None else (ASKED + STEP_COST) / config.preserve_every)


def preserving_row(config: TrainConfig, feed: Feed) -> list[tuple[str, str]]:
    """What the base is held to, and what that takes."""
    c, asked = config, [p for p in feed.pictures if p.preserved is not None]
    if not asked:
        return []
    slower = f"a step takes about {step_cost(c) / STEP_COST:.1f} times as long"
    more = "preserve_every: 4 takes less" if c.preserve_every == 1 else f"in every {c.preserve_every} steps"
    many, first = number_of(len(asked), "caption"), asked[0].preserved or "no text at all"
    told = f"under {many} without what calls the LoRA, weight {c.preserve_weight:g}; {slower} ({more})"
    return [("base stays", f"{told}; the first: {first[:60]}")]
