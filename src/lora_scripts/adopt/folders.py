"""Data sets of other trainers, several of them, as the one folder of pictures that a config of ours has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_scripts.adopt.found import Found, Left
from lora_scripts.data.listing import list_data
from lora_scripts.data.loader import repeats_of
from lora_scripts.errors import UserError


@dataclass(frozen=True)
class Folder:
    """One set of pictures there."""

    path: str
    repeats: int
    told: str
    """As the comment tells it."""


def put_folders(found: Found, folders: Sequence[Folder], data: Path | None) -> None:
    """train_data_dir and what is counted of it. `data`: the folder that is given in place of those there."""
    if data is not None:
        found.put("train_data_dir", data.as_posix(), note="given by --data")
        for folder in folders:
            found.left.append(Left(folder.told, "the folder that --data gives stands in its place"))
        repeats = folders[0].repeats if len({folder.repeats for folder in folders}) == 1 else 1
        if is_numbered(data):
            found.put("folder_repeats", True, note="its folders are named like 10_name")
            repeats = 1
        if repeats > 1:
            found.put("repeats", repeats, note=folders[0].told)
        return
    if not folders:
        text = "no folder of pictures is named"
        found.faults.append(UserError(text, file=found.file, hint="say where they are: --data DIR"))
        return
    first, *others = folders
    if not others:
        found.put("train_data_dir", first.path, note=first.told)
        if first.repeats > 1:
            found.put("repeats", first.repeats, note=first.told)
    elif above := _above(folders):
        found.put("train_data_dir", above, note="the folder above " + ", ".join(folder.told for folder in folders))
        if all(_named(folder) for folder in folders):
            found.put("folder_repeats", True, note="num_repeats as in the folders' names")
        elif first.repeats > 1:
            found.put("repeats", first.repeats, note=first.told)
    else:
        found.put("train_data_dir", first.path, note=first.told)
        if first.repeats > 1:
            found.put("repeats", first.repeats, note=first.told)
        for folder in others:
            mend = "put the folders beside each other, named like 10_name by their repeats, and write the folder above"
            found.left.append(Left(folder.told, f"one folder is trained here: {mend}, with folder_repeats: true"))


def _named(folder: Folder) -> bool:
    """Whether the folder's name says its repeats."""
    name = PurePosixPath(folder.path).name
    return re.match(r"\d+_", name) is not None and repeats_of(f"{name}/") == folder.repeats


def _above(folders: Sequence[Folder]) -> str:
    """The folder that holds these and, if it is here, no others; "" where there is none, or it would count them
    otherwise."""
    above = {PurePosixPath(folder.path).parent.as_posix() for folder in folders}
    names = {PurePosixPath(folder.path).name for folder in folders}
    if len(above) > 1 or len(names) < len(folders):
        return ""
    alike = len({folder.repeats for folder in folders}) == 1
    if not alike and not all(map(_named, folders)):
        return ""
    (parent,) = above
    if Path(parent).is_dir() and {p.name for p in Path(parent).iterdir() if not p.name.startswith(".")} != names:
        return ""
    return parent


def is_numbered(folder: Path) -> bool:
    return folder.is_dir() and any(p.is_dir() and re.match(r"\d+_", p.name) for p in folder.iterdir())


def count(folder: str, *, by_folders: bool, repeats: int) -> int | None:
    """Pictures seen in one epoch; None where the folder is not here."""
    try:
        listing = list_data(Path(folder), allow_missing_captions=True)
    except (UserError, OSError):
        return None
    return sum(repeats_of(name) if by_folders else 1 for name in listing.images) * repeats
