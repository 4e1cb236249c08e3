"""Base models and their parts by name on the Hugging Face hub, fetched once into models/, where all programs find them.

The network is touched only for what is written as `hf:owner/name/file`, of a base also `owner/name`, and is not there
yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lora_scripts.config.values import WEIGHTS, did_you_mean, hub_name
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Progress, Sink
from lora_scripts.units import size

FOLDER = Path("models")
"""Where they go, in the folder in which the command is typed: models/owner/name."""
_WHOLE = ("model_index.json", "config.json")
"""One of them stands at the top of a repository that is a model, and is written last: with it the folder is whole."""
_SMALL = (".json", ".txt", ".model", ".jinja")
_MIB = 2**20
_PATIENCE = 20
"""Seconds that the hub has to answer."""


def place(base: Path) -> Path:
    """Where the base lies on the disk, or would: the path itself, unless it is a name on the hub."""
    name = hub_name(base)
    return FOLDER / name.repo / name.file if name else base


def fetch(base: Path, sink: Sink, key: str = "base_model") -> Path:
    """The base, or the part of it that `key` names, on the disk; downloaded first, after saying what and how much,
    where it is a name on the hub and not there yet. UserError, with the mend, where that cannot be."""
    name, target = hub_name(base), place(base)
    if name is None or (target.is_file() if name.file else any((target / file).is_file() for file in _WHOLE)):
        return target
    folder, mend = FOLDER / name.repo, _by_hand(name.repo, name.file, key)
    listed = _listed(name.repo, key, mend)
    wanted = _one(listed, name.repo, name.file) if name.file else _whole(listed, name.repo)
    total = sum(listed[file] for file in wanted)
    what = wanted[0] if len(wanted) == 1 else f"{len(wanted)} files"
    sink(Note(f"downloading {what} of {name.repo} from {_endpoint()} into {folder.as_posix()}: {size(total)}, once"))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise UserError(f"{size(total)} are needed, and {size(free)} are free", file=folder, hint="make room")
    _download(name.repo, wanted, folder, total, mend, sink)
    return target


def _by_hand(repo: str, file: str, key: str) -> str:
    what = f"{repo} {file}" if file else repo
    here = (FOLDER / repo).as_posix()
    return (
        f"on a machine with a network run: hf download {what} --local-dir {here}, copy that folder here, and write "
        f"{key}: {here}{'/' + file if file else ''}"
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _listed(repo: str, key: str, mend: str) -> Mapping[str, int]:
    """File -> bytes, of all files of a repository."""
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(repo, files_metadata=True, timeout=_PATIENCE).siblings
        return {file.rfilename: file.size or 0 for file in siblings or ()}
    except failures() as error:
        raise UserError(f"{key} {repo} is not on this machine, and {why(error)}", hint=mend) from None


def _one(listed: Mapping[str, int], repo: str, file: str) -> list[str]:
    if file in listed:
        return [file]
    weights = [name for name in listed if name.endswith(WEIGHTS)]
    near = did_you_mean(file, weights)
    hint = f"did you mean hf:{repo}/{near}?" if near else _choice(repo, weights)
    raise UserError(f"{repo} has no file {file} on the hub", hint=hint)


def _whole(listed: Mapping[str, int], repo: str) -> list[str]:
    """What is needed of a repository that is a model, what makes it whole last: no second precision, no pickles, no
    single file beside a diffusers folder. UserError where it is a collection of single files, or none."""
    top = next((file for file in _WHOLE if file in listed), None)
    if top is None:
        weights = [name for name in listed if name.endswith(WEIGHTS)]
        raise UserError(f"{repo} is no model in a folder on the hub", hint=_choice(repo, weights))
    diffusers = top == "model_index.json"
    wanted = [file for file in listed if file != top and _needed(file, inside=diffusers)]
    return [*sorted(wanted), top]


def _needed(file: str, *, inside: bool) -> bool:
    """`inside`: the weights lie in folders, a part of the model in each."""
    folder, _, name = file.rpartition("/")
    if folder.startswith(("safety_checker", "feature_extractor", ".")) or bool(folder) is not inside:
        return False
    # A dot in the middle names a variant: model.fp16.safetensors, but not model.safetensors.index.json.
    weights = name.endswith(".safetensors") and name.count(".") == 1
    index = name.endswith(".safetensors.index.json") and name.count(".") == 3
    return weights or index or (name.endswith(_SMALL) and ".index." not in name)


def _choice(repo: str, weights: Sequence[str]) -> str:
    if not weights:
        return "it has no .safetensors and no .gguf; look at its page for another model"
    return f"name one of its files: {', '.join(f'hf:{repo}/{file}' for file in weights[:3])}"


def _download(repo: str, files: Sequence[str], folder: Path, total: int, mend: str, sink: Sink) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    done = 0

    class Told(tqdm):
        """Tells the sink what the library would draw on the terminal."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            done += int(n or 0)
            sink(Progress("MiB", min(done, total) // _MIB, -(-total // _MIB)))

    for file in files:
        try:
            hf_hub_download(repo, file, local_dir=folder, tqdm_class=Told)
        except failures() as error:
            hint = f"the same command goes on; or {mend}"
            raise UserError(f"{repo}: {file} was not downloaded: {why(error)}", hint=hint) from None


# --- what goes wrong --------------------------------------------------------------------------------------------------


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub is not reached, or has no such thing."""
    from huggingface_hub.errors import HfHubHTTPError

    # An HfHubHTTPError is an OSError and an error of the HTTP library, whose others may come by themselves.
    return cast("tuple[type[Exception], ...]", (ValueError, *HfHubHTTPError.__bases__))


def why(error: BaseException) -> str:
    """The cause, in a few words."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # what is not in the cache either is told as such, with what kept it from being downloaded as its cause
    cause = (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error
    if isinstance(cause, GatedRepoError):
        return "its page asks to accept its terms first; do that there, then run: hf auth login"
    if isinstance(cause, RepositoryNotFoundError):
        return "there is no such model on the hub, or it wants a login (run: hf auth login)"
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    lines = str(cause).strip().splitlines()
    return f"the hub is not reached ({lines[0] if lines else type(cause).__name__})"
