"""Models by their name on the Hugging Face hub: from the local cache without a socket, else downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families.download import failures, why

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ("*.json", "*.txt", "*.csv", "*.model", "*.jinja")
"""Config, tokenizer, preprocessor, list of tags."""


def is_hub_name(model: str) -> bool:
    """Whether `model` is like owner/name, and not a path: nothing of that name, and no such parent folder, is here."""
    path = Path(model)
    return bool(_NAME.fullmatch(model)) and not path.exists() and not path.parent.exists()


def model_name(folder: Path) -> str:
    """What the model in a folder is called: the cache keeps models--owner--name/snapshots/<commit>."""
    cache = folder.parents[1].name if len(folder.parents) > 1 else ""
    return cache.rsplit("--", 1)[-1] if cache.startswith("models--") else folder.name


def cached(model: str) -> Path | None:
    """The folder in the local cache that holds at least what tells the model's kind. No socket is opened."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("selected_tags.csv", "config.json"):
        path = try_to_load_from_cache(model, file)
        if isinstance(path, str):
            return Path(path).parent
    return None


def download(model: str, weights: str | None = None) -> Path:
    """The model's small files, and those that match `weights`, in the local cache; from subfolders nothing.

    UserError, which says how to fetch the model on another machine, when the hub is not reached or has no such model.
    """
    from huggingface_hub import snapshot_download

    wanted = [*_SMALL_FILES, *([weights] if weights else [])]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except failures() as error:
        reason = why(error)
    folder = f"models/{model.split('/')[1]}"
    raise UserError(
        f"model {model}: neither a folder here nor in the local Hugging Face cache, and not downloaded ({reason})",
        hint=f"on a machine with a network run: hf download {model} --local-dir {folder}, copy that folder here, and "
        f"give --model {folder}",
    )
