"""Where the text encoders of a base in separate files lie, and their tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families.flow.token_files import signs_of
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
    shipped: Path | None = None,
) -> Path:
    """The tokenizer of a text encoder, by the first of `names`: beside it, in a folder of this name beside it, or in
    the base; else the one that ships for it. UserError where there is none, or for one that does not know `signs`.

    `also`: other names that the folder may have; `page`: where people find it; `shipped`: as of `token_files`.
    """
    own, folders = path if path.is_dir() else path.parent, (folder, *also)
    # The folders first: beside the files of several text encoders lies the tokenizer.json of one of them.
    parents = [own.parent, *([base] if base.is_dir() else [])]
    places = [*(own / name for name in folders), own, *(place / name for place in parents for name in folders)]
    found = next((place / name for place in places for name in names if (place / name).is_file()), None)
    found = own_or_shipped(found, shipped, signs)
    if found is None:
        told = " or ".join(names)
        text = f"there is no {told} beside this text encoder, and without it captions cannot be read"
        hint = f"copy {told} from {page} (folder {folder}) beside it"
        raise UserError(text, file=path, hint=hint)
    require_signs(found, signs, folder)
    return found


def own_or_shipped(own: Path | None, shipped: Path | None, signs: Sequence[str]) -> Path | None:
    """The tokenizer that lies there, unless one ships and it is of another model: files of several text encoders often
    lie in one folder, and with them the tokenizer of one. UserError for what is none."""
    if shipped is None or (own is not None and signs_of(own).issuperset(signs)):
        return own
    return shipped


def require_signs(tokenizer: Path, wanted: Sequence[str], folder: str) -> None:
    """UserError unless the tokenizer knows the signs that a family's texts are made of."""
    known = signs_of(tokenizer)
    lacking = [sign for sign in wanted if sign not in known]
    if lacking:
        text = f"this tokenizer does not know {', '.join(lacking)}: it is of another model"
        hint = f"copy the one from the model's page into a folder {folder} beside the text encoder"
        raise UserError(text, file=tokenizer, hint=hint)
