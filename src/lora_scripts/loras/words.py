"""The new words that LoRA files bring: bundled in them, or in embedding files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.clip.prompts import word_pattern
from lora_scripts.formats import header
from lora_scripts.loras import embedding

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "embeddings"
"""Beside LoRA files; A1111 and ComfyUI call theirs so, too."""


def embedding_file(lora: Path, word: str) -> Path:
    """Where a training puts the vectors of a word of `lora`."""
    return lora.parent / FOLDER / lora.stem / f"{word}.safetensors"


def embedding_files(lora: Path) -> dict[str, Path | None]:
    """Word -> its embedding file, or None where there is none, of the words that the LoRA's metadata names."""
    told = header.read_header(lora).metadata.get(embedding.WORDS, "[]") if lora.is_file() else "[]"
    try:
        words = [word for word in json.loads(told) if isinstance(word, str)]
    except (ValueError, TypeError, RecursionError):
        words = []
    found: dict[str, Path | None] = {}
    for word in words:
        near = (lora.parent / FOLDER / f"{word}.safetensors", lora.parent / f"{word}.safetensors")
        places = [path for path in (embedding_file(lora, word), *near) if path != lora and path.is_file()]
        found[word] = places[0] if places else None
    return found


def check_words(prompt: str, loras: Iterable[Path]) -> None:
    """UserErrors for words of the prompt that a LoRA was trained with, but whose vectors are nowhere."""
    faults = []
    for lora in loras:
        bundled = embedding.bundled(header.read_header(lora).tensors) if lora.is_file() else []
        lost = [w for w, p in embedding_files(lora).items() if p is None and w not in bundled]
        for word in lost:
            if word_pattern([word]).search(prompt):
                text = f"was trained with the word {word!r}, whose vectors are not there"
                hint = f"put its embedding file at {embedding_file(lora, word)}"
                faults.append(UserError(text, file=lora, hint=hint))
    raise_all(faults)


def read_words(lora: Path) -> dict[str, Tensor]:
    """Word -> vectors [k, width] float32: those in the file, then those beside it. UserError for spoilt ones."""
    from safetensors import safe_open

    if not lora.is_file():  # a folder of PEFT's
        return {}
    names = [key for key in header.read_header(lora).tensors if key.startswith(embedding.BUNDLE)]
    words: dict[str, Tensor] = {}
    if names:
        with safe_open(lora, "pt") as file:
            words = embedding.split_bundle({name: file.get_tensor(name) for name in names}, lora)[1]
    beside = embedding_files(lora)
    return words | {w: embedding.read_embedding(p) for w, p in beside.items() if p is not None and w not in words}


def together(words: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The words of several LoRAs. UserError where two mean different things by one word."""
    owner: dict[str, Path] = {}
    result: dict[str, Tensor] = {}
    for path, own in words.items():
        for word, vectors in own.items():
            before = next((other for other in result if other.lower() == word.lower()), None)
            if before is not None and not (
                result[before].shape == vectors.shape and bool((result[before] == vectors).all())
            ):
                text = f"brings the word {word!r}, which {owner[before].name} brings too, with another meaning"
                raise UserError(text, file=path, hint="call one of the two")
            result[before or word], owner[before or word] = vectors, path
    return result
