"""Pivotal tuning: the new words of a run, from the captions that must hold them to the files that bring them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.clip.prompts import word_pattern
from lora_scripts.families.clip.tokenizer import clip_counter
from lora_scripts.formats import io
from lora_scripts.loras import embedding
from lora_scripts.loras.words import embedding_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lora_scripts.families.base import PictureFamily
    from lora_scripts.train.optim import Group

GROUP = "new words"
"""Of the optimizer."""


def check_new_words(config: TrainConfig, samples: Sequence[Sample]) -> None:
    """UserErrors for new words that are not new, or that no caption holds. Needs no torch."""
    faults = []
    for word in config.new_token:
        known = [word.lower(), f"{word.lower()}</w>"]
        if any(clip_counter().token_to_id(token) is not None for token in known):
            hint = f"choose one that it lacks, such as {word}-1 or a made-up name"
            faults.append(UserError(f"new_token: CLIP knows the word {word!r} already", hint=hint))
        holding = sum(bool(word_pattern([word]).search(s.caption)) for s in samples)
        if samples and not holding:
            hint = f"write it into the captions, as lora-scripts label --trigger {word} does"
            faults.append(UserError(f"new_token: no caption holds the word {word!r}", hint=hint))
    raise_all(faults)


def tell_new_words(config: TrainConfig, samples: Sequence[Sample]) -> str:
    """For the table before the first step."""
    many = "s" if config.token_vectors > 1 else ""
    told = []
    for word in config.new_token:
        holding = sum(bool(word_pattern([word]).search(s.caption)) for s in samples)
        told.append(f"{word} (in {holding} of {len(samples)} captions)")
    start = ", ".join(repr(text) for text in config.token_init if text) or "the mean of all words"
    return f"{', '.join(told)}; {config.token_vectors} vector{many}, from {start}, rate {config.token_lr:g}"


def make_words(config: TrainConfig, family: PictureFamily, initial: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Puts the new words into the family, to be trained; `initial`: those of init_lora, which go on.

    UserErrors for words of init_lora that would be lost, or have another number of vectors.
    """
    import torch

    from lora_scripts.families.clip.word_table import spread

    names = {word.lower(): word for word in config.new_token}
    kept = {names[word.lower()]: vectors for word, vectors in initial.items() if word.lower() in names}
    faults = [
        UserError(f"was trained with the word {word!r}", file=config.init_lora, hint=f"add new_token: {word}")
        for word in initial
        if word.lower() not in names
    ]
    for word, vectors in kept.items():
        if len(vectors) != config.token_vectors:
            text = f"has {len(vectors)} vectors for the word {word!r}, token_vectors is {config.token_vectors}"
            faults.append(UserError(text, file=config.init_lora, hint=f"write token_vectors: {len(vectors)}"))
    raise_all(faults)
    texts = config.token_init or ("",)
    words = {}
    for i, word in enumerate(config.new_token):
        start = kept.get(word)
        if start is None:
            start = spread(family.vectors_of(texts[i % len(texts)]), config.token_vectors)
        words[word] = torch.nn.Parameter(start.clone())
    if words:
        family.set_words(words)
        family.encode_text([""])  # onto the device: the optimizer and the averages begin where the training is
    return words


def group_of(config: TrainConfig, words: Mapping[str, nn.Parameter]) -> list[Group]:
    """The optimizer's group of the new words. They are not decayed: towards zero lies no meaning."""
    from lora_scripts.train.optim import Group

    return [Group(GROUP, list(words.values()), config.token_lr, weight_decay=0.0)] if words else []


def set_stop(optimizer: torch.optim.Optimizer, stop: float | None, total: int) -> None:
    """The step from which new words rest; below 1 it is a share of all steps."""
    for group in optimizer.param_groups:
        if group["name"] == GROUP and stop is not None:
            group["stop"] = stop_of(stop, total)


def stop_of(stop: float, total: int) -> int:
    """The step that `token_stop` means in a run of `total` steps."""
    return max(1, round(stop * total)) if stop < 1 else int(stop)


def save_words(words: Mapping[str, Tensor], widths: Sequence[int], lora: Path) -> None:
    """An embedding file for each word [k, sum of widths], beside the LoRA; `widths` as `PictureFamily.word_widths`."""
    for word, vectors in words.items():
        path = embedding_file(lora, word)
        io.make_folder(path.parent)
        io.save_safetensors(path, embedding.to_file(vectors, widths))


def metadata_of(words: Iterable[str]) -> dict[str, str]:
    """What a LoRA file says of its words."""
    named = list(words)
    if not named:
        return {}
    return {embedding.WORDS: json.dumps(named, ensure_ascii=False), "modelspec.trigger_phrase": ", ".join(named)}
