"""Values that the config and the command line share: paths, sizes, devices. Quick: no library is imported."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from lora_scripts.errors import UserError

SIZE_STEP, SIZE_MIN, SIZE_MAX = 8, 64, 2048
SIZE_RULE = f"multiples of {SIZE_STEP} from {SIZE_MIN} to {SIZE_MAX} pixels"
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,2})?")
NAME_MAX, PATH_MAX = 255, 4096
"""Bytes of a file's name, and of a whole path, that the usual file systems take."""
WEIGHTS = (".safetensors", ".gguf")
"""What files of weights end in."""
PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin"})
# Line breaks, control characters and the no-break space: in a path they come from "\n", "\t", "\_" … in double quotes.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\xa0\u2028\u2029]")


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word`, whatever its case and with - for _, or None."""
    by_folded = {name.casefold().replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(word.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[near[0]] if near else None


def parse_device(text: str) -> str:
    """The name of a device as it is; ValueError (with the mend) for another word."""
    if not DEVICE.fullmatch(text):
        raise ValueError("must be auto, cpu, cuda, mps, or one card such as cuda:1")
    return text


def parse_path(value: object) -> Path:
    """A text as a path, `~` expanded; ValueError (with the mend) for anything that was not meant as a path."""
    if isinstance(value, PathLike):
        return Path(value)
    if not isinstance(value, str):
        raise ValueError("must be a path; put it in quotes")
    if not value.strip():
        raise ValueError("is an empty text")
    if _CONTROL.search(value):
        raise ValueError(
            "holds a control character, because a backslash in double quotes starts an escape such as \\n; "
            "write the path with / or in single quotes"
        )
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError("starts with ~, but the home folder is not known; write the whole path") from None
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > NAME_MAX:
        raise ValueError(f"has a name of {longest} bytes in it, and {NAME_MAX} is the most; choose a shorter one")
    if len(os.fsencode(path)) >= PATH_MAX:
        raise ValueError(
            f"is {len(os.fsencode(path))} bytes long, and {PATH_MAX - 1} is the most; choose a shorter one"
        )
    return path


def at_home(word: str) -> Path:
    """A word of the command line as a path, `~` expanded. UserError where the home folder is not known, as in a
    container whose user has no name, or where ~word names nobody."""
    try:
        return Path(word).expanduser()
    except RuntimeError:
        text = f"{word} starts with ~, but the home folder is not known"
        raise UserError(text, hint=f"write the whole path, or ./{word} for what is called so here") from None


@dataclass(frozen=True)
class HubName:
    """A model on the Hugging Face hub."""

    repo: str
    """owner/name"""
    file: str = ""
    """In it; empty: the whole model."""


_WORD = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"hf:({_WORD}/{_WORD})(?:/([\w./ ()+-]+))?")


def hub_name(path: Path) -> HubName | None:
    """What `hf:owner/name/file`, `hf:owner/name` or `owner/name` means; None for a path. A name without hf: is one only
    where nothing of that name, and no folder `owner`, is here."""
    text = path.as_posix()
    if match := _HUB.fullmatch(text):
        return HubName(match[1], match[2] or "")
    weights = path.suffix.lower() in {*WEIGHTS, *PICKLES}
    if re.fullmatch(f"{_WORD}/{_WORD}", text) and not weights and not path.exists() and not path.parent.exists():
        return HubName(text)
    return None


def check_size(value: object) -> int | tuple[int, int]:
    """One side or (width, height) in pixels from 512, [512, 768] or (512, 768); ValueError otherwise."""
    items = list(value) if isinstance(value, list | tuple) else [value, value]
    sides = [side for side in items if isinstance(side, int) and not isinstance(side, bool)]
    if len(items) != 2 or len(sides) != 2:
        raise ValueError(f"must be a whole number or [width, height], {SIZE_RULE}")
    for side in sides:
        if not SIZE_MIN <= side <= SIZE_MAX or side % SIZE_STEP:
            near = min(max(round(side / SIZE_STEP) * SIZE_STEP, SIZE_MIN), SIZE_MAX)
            raise ValueError(f"must be {SIZE_RULE}; the nearest to {side} is {near}")
    return (sides[0], sides[1]) if isinstance(value, list | tuple) else sides[0]


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from the command line's "512" or "512x768"; ValueError otherwise."""
    match = re.fullmatch(r"([0-9]{1,6})(?:[xX×*]([0-9]{1,6}))?", text.strip())
    if not match:
        raise ValueError(f"must be like 512 or 512x768 (width x height), {SIZE_RULE}")
    width = int(match[1])
    check_size((width, height := int(match[2] or width)))
    return width, height


def model_fault(path: Path, *, kind: str, folder: bool) -> tuple[str, str] | None:
    """(fault, mend) of a path to weights, or None if a file (or, where `folder`, a folder) is there.

    `kind` names what is wanted ("checkpoint", "VAE", "LoRA"). Nothing is opened: the reader checks the contents.
    """
    if path.as_posix().startswith("hf:") and hub_name(path) is None:
        return f"{path.as_posix()} names no model on the hub", "write hf:owner/name/file.safetensors, or hf:owner/name"
    if path.suffix.lower() in PICKLES:
        return (
            f"{path.as_posix()} is a pickle file, which can run code when it is opened",
            f"convert it to {path.stem}.safetensors, or download that version of it",
        )
    if path.is_dir():
        if folder:
            return None
        inside = sorted(path.glob("*.safetensors"))
        mend = f"name the file in it, for example {inside[0].as_posix()}" if inside else "name a .safetensors file"
        return f"{path.as_posix()} is a folder", mend
    if path.exists():
        return None
    if path.as_posix().startswith("hf:"):
        mend = "download it and write its path: names on the hub are for --base and for keys of a config"
        return f"{path.as_posix()} is a name on the hub", mend
    return f"{path.as_posix()} does not exist", _mend_of_missing(path, kind)


def base_fault(path: Path) -> tuple[str, str] | None:
    """As `model_fault`, for a checkpoint, which may be a name on the hub instead."""
    if hub_name(path) and path.suffix.lower() not in PICKLES:
        return None
    return model_fault(path, kind="checkpoint", folder=True)


def part_fault(path: Path, *, kind: str, folder: bool) -> tuple[str, str] | None:
    """As `model_fault`, for what belongs to a checkpoint, which may be a file on the hub instead."""
    name = hub_name(path) if path.as_posix().startswith("hf:") else None
    if name is None or path.suffix.lower() in PICKLES:
        return model_fault(path, kind=kind, folder=folder)
    if not name.file:
        return f"{path.as_posix()} names a whole model", f"name the file in it, such as hf:{name.repo}/name.safetensors"
    return None


def _mend_of_missing(path: Path, kind: str) -> str:
    """What to do about a file of weights that is not there: the nearest name beside it, or where to put one."""
    here = [p for p in path.parent.glob("*") if p.suffix in WEIGHTS]
    siblings = {p.stem: p for p in sorted(here, key=lambda p: p.suffix == path.suffix)}  # of two, that of its kind
    if near := did_you_mean(path.stem, list(siblings)):
        return f"did you mean {siblings[near].as_posix()}?"
    if here:
        names = sorted(p.name for p in here)
        return f"that folder holds {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
    return f"put the {kind} there, or change the path"
