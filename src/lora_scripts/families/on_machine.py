"""Base models that other programs have on this machine, and where else to get one."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families import table
from lora_scripts.families.download import FOLDER
from lora_scripts.families.facts import Facts
from lora_scripts.units import size

# Where programs that draw keep checkpoints, in their own folder: A1111, Forge and SD.Next; ComfyUI; packages of both;
# Stability Matrix.
PLACES = (
    "models/Stable-diffusion",
    "models/checkpoints",
    "webui/models/Stable-diffusion",
    "ComfyUI/models/checkpoints",
    "Data/Models/StableDiffusion",
)
MOST = 8
_FOLDERS = 500
"""Programs' folders that are looked at, in one place: a home may have thousands."""


@dataclass(frozen=True)
class Found:
    """A base that lies here."""

    path: Path
    facts: Facts
    size: int
    """Bytes."""


def roots() -> list[Path]:
    """Folders in which people put programs: here, beside, at home, and the drives of Windows."""
    near, usual = [Path(), Path("..")], list[Path]()
    with suppress(RuntimeError):  # nobody's home, as in a container whose user has no name
        home = Path.home()
        usual = [home, *(home / name for name in ("Desktop", "Documents", "Downloads", "AI"))]
    drives = [Path(f"{letter}:\\") for letter in string.ascii_uppercase[2:]] if os.name == "nt" else [Path("/opt")]
    return [folder for folder in (*near, *usual, *drives) if folder.is_dir()]


def find(folders: Sequence[Path] | None = None) -> list[Found]:
    """Bases that can be trained, the largest number of `MOST`, each once; told by their headers."""
    found: dict[Path, Found] = {}
    for path in _files(roots() if folders is None else folders):
        if len(found) == MOST:
            break
        try:
            facts, real = table.find(path), path.resolve()
            if facts.recipes and real not in found:
                found[real] = Found(path, facts, path.stat().st_size)
        except (UserError, OSError):  # a LoRA, half a download, a folder of somebody else
            continue
    return list(found.values())


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for root in folders:
        yield from _weights(root / FOLDER)
        try:
            programs = sorted(islice((p for p in root.iterdir() if not p.name.startswith(".")), _FOLDERS))
        except OSError:
            continue
        for program in programs:
            for place in PLACES:
                yield from _weights(program / place)


def _weights(folder: Path) -> list[Path]:
    try:
        return sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])
    except OSError:
        return []


def no_base(found: Sequence[Found], command: str) -> tuple[list[str], UserError]:
    """What to say where a base is wanted and none is given: the choices, and the error.

    `command`: what was typed, to be typed again with a base."""
    if found:
        lines = ["base models on this machine:"]
        lines += [f"  {f.path.as_posix()}  ({f.facts.words}, {size(f.size)})" for f in found]
        hint = f'give the one that you draw with: {command} --base "{found[0].path.as_posix()}"'
        return lines, UserError("no base model is given", hint=hint)
    lines = ["no WebUI with a base model is found on this machine; to fetch a published one:"]
    for facts in table.trainable():
        if facts.published:
            name, how_large = facts.published
            lines.append(f"  {facts.words}: --base {name}  ({how_large}; {_page(name)})")
    return lines, UserError("no base model is given", hint="give --base and the checkpoint that you draw with")


def _page(name: str) -> str:
    """Of a model on the hub."""
    owner, repo = name.removeprefix("hf:").split("/")[:2]
    return f"https://huggingface.co/{owner}/{repo}"
