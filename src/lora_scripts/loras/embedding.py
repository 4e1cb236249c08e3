"""Vectors of new words: in a file of their own, and bundled in a LoRA file.

A file of one word holds one tensor, `emb_params` [vectors, width], which A1111, ComfyUI, InvokeAI and diffusers read;
the word is the file's name. In a LoRA file they stand as `bundle_emb.WORD.string_to_param.*`, which is where A1111
looks for them (seen in 1.10), and what OneTrainer writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

KEY = "emb_params"
BUNDLE = "bundle_emb."
WORDS = "lora_scripts.new_token"
"""Metadata of a LoRA: a JSON list of the words that it was trained with."""
_LEAVES = (".string_to_param.*", ".clip_l")


def to_bundle(words: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Word -> vectors [k, width], as the keys of a LoRA file."""
    return {f"{BUNDLE}{word}{_LEAVES[0]}": vectors.contiguous() for word, vectors in words.items()}


def bundled(keys: Iterable[str]) -> list[str]:
    """The words that a LoRA file brings."""
    return sorted({key.removeprefix(BUNDLE).partition(".")[0] for key in keys if key.startswith(BUNDLE)})


def split_bundle(
    tensors: Mapping[str, Tensor], file: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the LoRA, word -> vectors [k, width] float32). UserError for a bundled word in another form."""
    rest, words = {}, {}
    for key, tensor in tensors.items():
        if not key.startswith(BUNDLE):
            rest[key] = tensor
            continue
        leaf = next((leaf for leaf in _LEAVES if key.endswith(leaf)), None)
        if leaf is None:
            raise UserError(f"{key} is no word that is read here", file=file, hint="give a LoRA without it")
        words[key.removeprefix(BUNDLE).removesuffix(leaf)] = _checked(tensor, file)
    return rest, words


def read_embedding(path: Path) -> Tensor:
    """Vectors [k, width] float32 of the one word in a file. UserError for another file."""
    import safetensors.torch

    from lora_scripts.formats import header

    found = header.read_header(path).tensors
    names = [name for name in found if name == KEY or len(found) == 1 or name.startswith("string_to_param")]
    if len(names) != 1:
        hint = "name a .safetensors with emb_params in it"
        raise UserError("this is no embedding of one word for one text encoder", file=path, hint=hint)
    return _checked(safetensors.torch.load_file(path)[names[0]], path)


def _checked(tensor: Tensor, file: Path | None) -> Tensor:
    vectors = tensor[None] if tensor.dim() == 1 else tensor
    if vectors.dim() != 2 or not len(vectors) or not bool(vectors.isfinite().all()):
        text = f"the vectors of a word have the shape {list(tensor.shape)}, or are not finite"
        raise UserError(text, file=file, hint="get the original file")
    return vectors.float()
