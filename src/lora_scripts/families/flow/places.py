"""Where the text encoders of a base in separate files lie, and their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families.flow import tekken
from lora_scripts.families.sd.whole import weights_of


def files_of(path: Path) -> tuple[Path, ...]:
    """The weights of a text encoder, of a file or a folder. UserErrors for what is not there."""
    if not path.is_dir():
        return (path,)
    other = "diffusion_pytorch_model"
    return tuple(weights_of(path, other if (path / f"{other}.safetensors").is_file() else "model"))


def tokenizer_of(
    path: Path,
    base: Path,
    folder: str,
    signs: Sequence[str],
    names: Sequence[str] = ("tokenizer.json",),
    *,
    also: Sequence[str] = (),
    page: str = "the model's page",
) -> Path:
    """The tokenizer of a text encoder, by the first of `names`: beside it, in a folder of this name beside it, or in
    the base. UserError where there is none, or for one that does not know `signs`.

    `also`: other names that the folder may have; `page`: where people find it.
    """
    own, folders = path if path.is_dir() else path.parent, (folder, *also)
    # The folders first: beside the files of several text encoders lies the tokenizer.json of one of them.
    parents = [own.parent, *([base] if base.is_dir() else [])]
    places = [*(own / name for name in folders), own, *(place / name for place in parents for name in folders)]
    found = next((place / name for place in places for name in names if (place / name).is_file()), None)
    if found is None:
        told = " or ".join(names)
        text = f"there is no {told} beside this text encoder, and without it captions cannot be read"
        hint = f"copy {told} from {page} (folder {folder}) beside it"
        raise UserError(text, file=path, hint=hint)
    require_signs(found, signs, folder)
    return found


def require_signs(tokenizer: Path, wanted: Sequence[str], folder: str) -> None:
    """UserError unless the tokenizer knows the signs that a family's texts are made of."""
    try:
        if tekken.is_one(tokenizer):
            known = set(tekken.signs(tokenizer))
        else:
            table = json.loads(tokenizer.read_text("utf-8"))
            known = {str(row["content"]) for row in table["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("is no tokenizer", file=tokenizer, hint="get the original file") from None
    lacking = [sign for sign in wanted if sign not in known]
    if lacking:
        text = f"this tokenizer does not know {', '.join(lacking)}: it is of another model"
        hint = f"copy the one from the model's page into a folder {folder} beside the text encoder"
        raise UserError(text, file=tokenizer, hint=hint)
