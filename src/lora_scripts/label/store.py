"""Where captions lie: one metadata file, or a sidecar for each image. What a person wrote there is not lost.

Captions are on the disk soon after they are made: a whole new file is renamed over the old one, so that a run that is
killed at any moment leaves a file without a torn row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from lora_scripts.config.values import at_home
from lora_scripts.data.captions import METADATA_SUFFIXES, read_sidecar
from lora_scripts.data.findings import SIDECAR_SUFFIXES
from lora_scripts.data.write_captions import CaptionTable, check_name
from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats import io

_REST = 9
"""A table rests this many times as long as its last writing took: a tenth of the time at most goes into it, and no more
than that is lost in a kill."""


class Store(Protocol):
    """The captions of a folder's images in one place."""

    path: Path
    """As told to a person."""
    captions: dict[str, str]
    """Image name -> what is said of it on the disk, empty captions included."""

    def holds(self, file: Path) -> bool:
        """Whether a caption that was read from `file` is one of this store's."""
        ...

    def put(self, name: str, caption: str) -> bool:
        """Takes a caption. False, and nothing is done, if a person wrote one there since this store was opened."""
        ...

    def save(self) -> None:
        """What was put is on the disk now or soon. To be called after each batch; UserError as `flush`."""
        ...

    def flush(self) -> None:
        """Everything that was put is on the disk. UserError when the disk or the permissions refuse."""
        ...

    def backup(self) -> Path:
        """Copies what is there now to a new file beside it, and gives its path."""
        ...

    def leave_room(self, name: str) -> str:
        """Makes an empty row, or file, where a person can write the caption of a picture, and says where in words."""
        ...


def open_store(output: str | None, folder: Path, images: Mapping[str, Path]) -> Store:
    """The store that `--output` names, for the images (name -> path) of `folder`. UserErrors with all that is wrong.

    Nothing: `folder`/metadata.csv. A .csv or .jsonl: that file. "txt" or "caption": a file of that kind beside every
    image. A folder that exists: .txt files in it, named like the images.
    """
    if output is None:
        output = str(folder / "metadata.csv")
    path = at_home(output)
    if path.suffix.lower() in METADATA_SUFFIXES and not path.is_dir():
        return TableStore(path, folder, images)
    suffix = output if output.startswith(".") else f".{output}"
    if suffix in SIDECAR_SUFFIXES:
        return SidecarStore(folder, suffix, images)
    if path.is_dir():
        return SidecarStore(path, SIDECAR_SUFFIXES[0], images)
    hint = "give a .csv or .jsonl file, txt or caption for files beside the images, or a folder that exists"
    raise UserError(f'--output: captions cannot be written to "{output}"', hint=hint)


class TableStore:
    """One .csv or .jsonl file."""

    def __init__(self, path: Path, folder: Path, images: Mapping[str, Path]) -> None:
        if not path.parent.is_dir():
            raise UserError(f"--output: the folder {path.parent} does not exist", hint="make it first")
        home, inside = folder.resolve(), path.parent.resolve()
        if inside != home and home in inside.parents and path.stem.lower() == "metadata":
            hint = f"write {folder / path.name}, or give another name"
            raise UserError(f"--output: names in {path} would count from {inside.name}/, not from {folder}", hint=hint)
        raise_all([fault for name, image in images.items() if (fault := _name_fault(name, image))])
        io.remove_stale_temps(path.parent)
        self.path, self._table, self._stamp = path, CaptionTable(path), _stamp(path)
        self._fresh: dict[str, str] = {}  # put, and not on the disk yet
        self._next = 0.0  # when the table may be written again, by the monotonic clock
        self._home = path.resolve()
        self.captions = dict(self._table.captions)

    def holds(self, file: Path) -> bool:
        return file.resolve() == self._home

    def put(self, name: str, caption: str) -> bool:
        self._look()
        if name not in self._fresh and not self._untouched(name):
            return False
        self._fresh[name] = caption
        self._table.set(name, caption)
        return True

    def save(self) -> None:
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        self._look()
        if self._fresh:
            self._write()

    def backup(self) -> Path:
        return _backup(self.path, self.path.read_bytes())

    def leave_room(self, name: str) -> str:
        self._look()
        if name not in self._table.captions:
            self._fresh[name] = ""
            self._table.set(name, "")
        return f"its row in {self.path}"

    def _write(self) -> None:
        start = time.monotonic()
        io.write_text(self.path, self._table.content())
        self._stamp = _stamp(self.path)
        self.captions.update(self._fresh)
        self._fresh.clear()
        self._next = time.monotonic() + _REST * (time.monotonic() - start)

    def _look(self) -> None:
        """Takes up the file as it is now, if a person has saved it since it was read or written here."""
        if _stamp(self.path) == self._stamp:
            return
        self._stamp = _stamp(self.path)
        self._table = CaptionTable(self.path)
        self._fresh = {name: caption for name, caption in self._fresh.items() if self._untouched(name)}
        for name, caption in self._fresh.items():
            self._table.set(name, caption)

    def _untouched(self, name: str) -> bool:
        """Whether the file says of a picture what it said when it was read or written here."""
        return self._table.captions.get(name, "") == self.captions.get(name, "")


class SidecarStore:
    """One file beside each image, or in another folder under the image's name."""

    def __init__(self, folder: Path, suffix: str, images: Mapping[str, Path]) -> None:
        self.path, self._suffix = folder, suffix
        self._files = {name: folder / PurePosixPath(name).with_suffix(suffix) for name in images}
        owners: dict[Path, str] = {}
        faults: list[UserError] = []
        self.captions: dict[str, str] = {}
        for name, file in self._files.items():
            if file in owners:
                message = f'"{owners[file]}" and "{name}" would share {file.name}'
                faults.append(UserError(message, file=file.parent, hint="rename one of them, or write a .csv file"))
            owners.setdefault(file, name)
            try:
                self.captions[name] = self._read(file)
            except UserError as fault:
                faults.append(fault)
        raise_all(faults)
        for parent in {file.parent for file in owners}:
            io.remove_stale_temps(parent)
        self._homes = {file.resolve() for file in owners}

    def holds(self, file: Path) -> bool:
        return file.resolve() in self._homes

    def put(self, name: str, caption: str) -> bool:
        file = self._files[name]
        if self._read(file) != self.captions[name]:
            return False
        io.make_folder(file.parent)
        io.write_text(file, caption + "\n")
        self.captions[name] = caption
        return True

    def save(self) -> None:
        """Each caption is on the disk already."""

    flush = save

    def leave_room(self, name: str) -> str:
        file = self._files[name]
        if not file.exists():
            io.make_folder(file.parent)
            io.write_text(file, "")
        return f"its {self._suffix} file"

    def backup(self) -> Path:
        # No `CaptionTable`, which refuses some names.
        rows = [{"file_name": name, "text": caption} for name, caption in self.captions.items() if caption]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return _backup(self.path / "captions.jsonl", text.encode())

    @staticmethod
    def _read(file: Path) -> str:
        return read_sidecar(file, allow_empty=True) if file.exists() or file.is_symlink() else ""


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when somebody saves the file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _name_fault(name: str, image: Path) -> UserError | None:
    try:
        check_name(name)
    except ValueError as error:
        return UserError(str(error), file=image, hint="rename it, or write sidecars with --output txt")
    return None


def free_backup(path: Path) -> Path:
    """The first free name for a copy: metadata.csv.bak, metadata.csv.2.bak …"""
    number, target = 1, path.with_name(f"{path.name}.bak")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{number}.bak")
    return target


def _backup(path: Path, data: bytes) -> Path:
    target = free_backup(path)
    io.write_atomic(target, data)
    return target
