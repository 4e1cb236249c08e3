"""The model files of a folder, without what a run keeps for itself."""

from __future__ import annotations

import re
from pathlib import Path

# An entry of a cache: 64 digits of a hash, two of them the folder's.
_ENTRY = re.compile(r"(?:.*/)?[0-9a-f]{2}/[0-9a-f]{62}\.safetensors")


def models_below(folder: Path, *suffixes: str) -> tuple[list[Path], int]:
    """(files in `folder` and below, sorted; how many were left out: resume states, and what was encoded into a cache).

    Of a folder that is itself such a state, all.
    """
    every = sorted(path for suffix in suffixes for path in folder.rglob(f"*{suffix}") if path.is_file())
    models = [path for path in every if not _of_run(path.relative_to(folder))]
    return models, len(every) - len(models)


def _of_run(inside: Path) -> bool:
    return "state" in inside.parts[:-1] or _ENTRY.fullmatch(inside.as_posix()) is not None
