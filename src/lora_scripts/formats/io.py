"""The one module that writes files: a reader, or a machine that lost its power, finds a whole old or a whole new
version.

A file is written beside its target under a temporary name, synced to the disk, renamed over the target, and the folder
is synced. A writer holds a lock on what it writes, so `remove_stale_temps` can tell what a killed one has left behind.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lora_scripts.errors import UserError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo
    from torch import Tensor

Buffer: TypeAlias = bytes | bytearray | memoryview
Data: TypeAlias = Buffer | Iterable[Buffer]


class Row(NamedTuple):
    """What a safetensors header says of one tensor."""

    name: str
    dtype: str
    """The format's name: F32, F16, BF16, …"""
    shape: tuple[int, ...]
    size: int
    """In bytes."""


_CLEARED: set[str] = set()
"""Folders that this process has cleared of what killed writers left."""
_PREFIX, _NEW, _OLD = ".lora-scripts-", ".tmp", ".old-"
_CHUNK = 1 << 24  # bytes for one os.write; the largest that every system takes is 2 GiB
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # file systems that cannot sync a folder
_SAFETENSORS_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_atomic(path: Path, data: Data) -> None:
    """Writes `data` (bytes, or buffers one after the other) to `path`, whole or not at all.

    The folder must exist. The mode is what the umask gives. UserError when the disk or the permissions refuse: the
    previous file then still stands, and nothing else is left in the folder.
    """
    _clear_once(path.parent)
    temp = path.parent / f"{_PREFIX}{secrets.token_hex(8)}{_NEW}"
    with _told(path):
        try:
            _write_synced(temp, data)
            os.replace(temp, path)
        except BaseException:
            with suppress(OSError):
                temp.unlink()
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, with the line ends that it has, whole or not at all."""
    write_atomic(path, text.encode())


def write_folder(path: Path, files: Mapping[str, Data]) -> None:
    """Writes a folder of files (name, as "a" or "sub/a", -> content), whole or not at all.

    An older folder of that name goes only after the new one is complete and synced; should the machine stop between the
    two renames, `remove_stale_temps` puts the older one back. UserError as in `write_atomic`.
    """
    _clear_once(path.parent)
    token = secrets.token_hex(8)
    temp, old = path.parent / f"{_PREFIX}{token}{_NEW}", path.parent / f"{_PREFIX}{token}{_OLD}{path.name}"
    with _told(path):
        try:
            temp.mkdir()
            with _locked_folder(temp):
                inner = {temp}
                for name, data in files.items():
                    parts = PurePosixPath(name).parts
                    if "/".join(parts) != name or {"..", "/"} & set(parts) or not parts:
                        raise ValueError(f"not the name of a file inside a folder: {name!r}")
                    (temp / name).parent.mkdir(parents=True, exist_ok=True)
                    inner |= {parent for parent in (temp / name).parents if temp in parent.parents}
                    _write_synced(temp / name, data)
                for folder in sorted(inner, reverse=True):  # from the deepest up
                    _sync_folder(folder)
                _swap_in(temp, path, old)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Moves a file, also to another disk; never over another one. The folder of `target` is made. UserError as above.

    Started again after it was killed, it ends what it began.
    """
    with _told(target):
        synced_mkdir(target.parent)
        if source.resolve() == target.resolve():
            return
        if target.exists():
            if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
                raise UserError("there is another file of this name", file=target, hint="move one of them away")
            source.unlink()
        else:
            try:
                os.rename(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                write_atomic(target, source.read_bytes())
                source.unlink()
        _sync_folder(target.parent)
        _sync_folder(source.parent)


def remove_stale_temps(folder: Path) -> list[Path]:
    """Clears what killed writers have left in `folder`; gives the paths cleared. What is being written stays."""
    cleared: list[Path] = []
    if not folder.is_dir():
        return cleared
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        _, was_old, name = path.name.partition(_OLD)
        if was_old and not (folder / name).exists():
            with suppress(OSError):
                os.replace(path, folder / name)
            continue
        if not (was_old or path.name.endswith(_NEW)) or _is_locked(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # on Windows a file that is still open
                path.unlink()
        if not path.exists():
            cleared.append(path)
    return cleared


def _clear_once(folder: Path) -> None:
    """Before the first write into a folder: so that no command needs to think of what an earlier one left there.

    Not on Windows, where nothing tells what a living writer is about to rename.
    """
    if sys.platform != "win32" and (place := os.path.abspath(folder)) not in _CLEARED:
        _CLEARED.add(place)
        remove_stale_temps(folder)


def safetensors_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, Iterator[Buffer]]:
    """The bytes of a safetensors file: its header (with the 8 bytes of its length), and one buffer for each tensor.

    Equal input gives equal bytes, which the safetensors library does not promise: it writes metadata in random order.
    Tensors of wider types come first, then by name, as the library does, so each starts where its type wants it.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    rows = []
    for name in order:
        tensor = tensors[name]
        dtype = _SAFETENSORS_DTYPES[str(tensor.dtype).removeprefix("torch.")]
        rows.append(Row(name, dtype, tuple(tensor.shape), tensor.numel() * tensor.element_size()))
    return safetensors_header(rows, metadata), (tensor_bytes(tensors[name]) for name in order)


def safetensors_header(rows: Iterable[Row], metadata: Mapping[str, str] | None = None) -> bytes:
    """The header (with the 8 bytes of its length) of a file whose tensors follow one another as the rows do.

    `write_atomic(path, chain([header], buffers))` then writes a file of any size, one tensor in memory at a time.
    """
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    start = 0
    for row in rows:
        end = start + row.size
        header[row.name] = {"dtype": row.dtype, "shape": list(row.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a `.safetensors` file, whole or not at all; equal input gives equal bytes."""
    header, buffers = safetensors_parts(tensors, metadata)

    def parts() -> Iterator[Buffer]:
        yield header
        yield from buffers

    write_atomic(path, parts())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values, row by row, little-endian as on every machine that torch runs on."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _write_synced(path: Path, data: Data) -> None:
    """Writes a new file (0666 less the umask) and waits until it is on the disk."""
    buffers = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        _lock(fd)
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while rest:
                rest = rest[os.write(fd, rest[:_CHUNK]) :]
        _sync(fd)
    finally:
        os.close(fd)


def _swap_in(new: Path, path: Path, old: Path) -> None:
    """Renames `new` to `path`; what stood there goes to `old`, and comes back if the rename fails."""
    replaces = path.exists()
    if replaces:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if replaces:
            os.rename(old, path)
        raise


def _sync(fd: int) -> None:
    os.fsync(fd)
    if sys.platform == "darwin":
        with suppress(OSError):  # fsync on macOS stops at the drive's cache; not every file system knows the full one
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder durable, where the system can (Windows opens no folders)."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    if sys.platform != "win32":
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        _lock(fd)
        yield
    finally:
        os.close(fd)


def _is_locked(path: Path) -> bool:
    """Whether a writer still holds it; the system drops the lock of a process that is killed."""
    if sys.platform == "win32":
        return False
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(fd)
    return False


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns the system's refusal into one line that names the file and the mend."""
    try:
        yield
    except OSError as error:
        raise _as_user_error(error, path) from error


def _as_user_error(error: OSError, path: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("not written: the disk is full", file=path, hint="free some space, or set another folder")
    if error.errno == errno.ENOENT:
        return UserError(f"not written: the folder {path.parent} does not exist", file=path, hint="make it first")
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return UserError("not written: a file and a folder want the same name", file=path, hint="move one of them away")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "check the folder's permissions, and that no other program has the file open"
        return UserError("not written: the system does not allow it", file=path, hint=hint)
    return UserError(f"not written: {error.strerror or error}", file=path, hint="check the disk")


def make_folder(path: Path) -> None:
    """Makes a folder, with those above it, unless it is there. UserError as above.

    What is new is synced into what is above it: what a file is written into must not be gone when the power is.
    """
    with _told(path):
        synced_mkdir(path)


def synced_mkdir(path: Path) -> None:
    """As `make_folder`, but an OSError is raised as it is."""
    if not path.is_dir():
        if path.parent != path:
            synced_mkdir(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def save_png(path: Path, image: Image, texts: PngInfo | None = None) -> None:
    """Writes a PNG, whole or not at all, with `texts` in it; the folder is made. UserError as above."""
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=texts)
    make_folder(path.parent)
    write_atomic(path, buffer.getvalue())
