"""Vectors of new words: in a file of their own, and bundled in a LoRA file.

A file of one word holds one tensor, `emb_params` [vectors, width], which A1111, ComfyUI, InvokeAI and diffusers read,
or for two text encoders `clip_l` and `clip_g`; the word is the file's name. In a LoRA file they stand as
`bundle_emb.WORD.string_to_param.*`, or `bundle_emb.WORD.clip_l` and `.clip_g`, which is where A1111 looks for them
(seen in 1.10), and what OneTrainer writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

KEY = "emb_params"
BUNDLE = "bundle_emb."
WORDS = "lora_scripts.new_token"
"""Metadata of a LoRA: a JSON list of the words that it was trained with."""
_ONE = "string_to_param.*"
_EACH = ("clip_l", "clip_g")
"""Of two text encoders, in the order in which a word's vectors stand side by side."""


def to_file(vectors: Tensor, widths: Sequence[int]) -> dict[str, Tensor]:
    """The vectors [k, sum of widths] of a word, as the tensors of a file of its own; `widths`: of each text encoder."""
    return _parts(vectors.float(), widths, KEY)


def to_bundle(words: Mapping[str, Tensor], widths: Sequence[int]) -> dict[str, Tensor]:
    """Word -> vectors [k, sum of widths], as the keys of a LoRA file."""
    parts = {word: _parts(vectors, widths, _ONE) for word, vectors in words.items()}
    return {f"{BUNDLE}{word}.{leaf}": part for word, own in parts.items() for leaf, part in own.items()}


def _parts(vectors: Tensor, widths: Sequence[int], one: str) -> dict[str, Tensor]:
    names = (one,) if len(widths) == 1 else _EACH
    return {name: part.contiguous() for name, part in zip(names, vectors.split(list(widths), 1), strict=True)}


def bundled(keys: Iterable[str]) -> list[str]:
    """The words that a LoRA file brings."""
    return sorted({key.removeprefix(BUNDLE).partition(".")[0] for key in keys if key.startswith(BUNDLE)})


def split_bundle(
    tensors: Mapping[str, Tensor], file: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the LoRA, word -> vectors [k, width] float32). UserError for a bundled word in another form."""
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(BUNDLE)}
    words: dict[str, dict[str, Tensor]] = {}
    for key in tensors.keys() - rest.keys():
        leaf = next((leaf for leaf in (_ONE, *_EACH) if key.endswith(f".{leaf}")), None)
        if leaf is None:
            raise UserError(f"{key} is no word that is read here", file=file, hint="give a LoRA without it")
        words.setdefault(key.removeprefix(BUNDLE).removesuffix(f".{leaf}"), {})[leaf] = tensors[key]
    return rest, {word: _together(words[word], file) for word in sorted(words)}


def read_embedding(path: Path) -> Tensor:
    """Vectors [k, width] float32 of the one word in a file. UserError for another file."""
    import safetensors.torch

    from lora_scripts.formats import header

    found = header.read_header(path).tensors
    names = [name for name in found if name == KEY or len(found) == 1 or name.startswith("string_to_param")]
    if len(names) != 1 and found.keys() != set(_EACH):
        hint = f"name a .safetensors with {KEY}, or with {' and '.join(_EACH)}, in it"
        raise UserError("this is no embedding of one word", file=path, hint=hint)
    tensors = safetensors.torch.load_file(path)
    return _together({name: tensors[name] for name in names or _EACH}, path)


def _together(parts: Mapping[str, Tensor], file: Path | None) -> Tensor:
    """The vectors of a word, those for several text encoders side by side. UserError for spoilt ones."""
    import torch

    vectors = [_checked(parts[name], file) for name in sorted(parts, key=(*_EACH, *parts).index)]
    if len({len(part) for part in vectors}) > 1:
        text = "a word has not as many vectors for one text encoder as for the other"
        raise UserError(text, file=file, hint="get the original file")
    return torch.cat(vectors, 1)


def _checked(tensor: Tensor, file: Path | None) -> Tensor:
    vectors = tensor[None] if tensor.dim() == 1 else tensor
    if vectors.dim() != 2 or not len(vectors) or not bool(vectors.isfinite().all()):
        text = f"the vectors of a word have the shape {list(tensor.shape)}, or are not finite"
        raise UserError(text, file=file, hint="get the original file")
    return vectors.float()
