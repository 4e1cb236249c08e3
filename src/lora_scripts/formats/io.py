"""The one module that writes files: a reader, or a machine that lost its power, finds a whole old or a whole new
version.

A file is written beside its target under a temporary name, synced to the disk, renamed over the target, and the folder
is synced. `locks` tells what is being written from what a killed writer has left behind.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from lora_scripts.errors import UserError
from lora_scripts.formats.locks import lock, locked_folder, remove_stale_temps, temporary_names
from lora_scripts.formats.safetensors_bytes import Buffer, Row, safetensors_header, safetensors_parts, tensor_bytes

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo
    from torch import Tensor

__all__ = [
    "Buffer",
    "Data",
    "Row",
    "make_folder",
    "move",
    "remove_stale_temps",
    "require_writable",
    "safetensors_header",
    "safetensors_parts",
    "save_png",
    "save_safetensors",
    "synced_mkdir",
    "tensor_bytes",
    "write_atomic",
    "write_folder",
    "write_text",
]
Data: TypeAlias = Buffer | Iterable[Buffer]
_CLEARED: set[str] = set()
"""Folders that this process has cleared of what killed writers left."""
_PAUSES = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.3)
"""Seconds between attempts to rename, on Windows."""
_LONGEST = 260
"""Letters of a path, from which on Windows says that there is no such folder, unless long ones were allowed there."""
_CHUNK = 1 << 24  # bytes for one os.write; the largest that every system takes is 2 GiB
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # file systems that cannot sync a folder


def write_atomic(path: Path, data: Data) -> None:
    """Writes `data` (bytes, or buffers one after the other) to `path`, whole or not at all.

    The folder must exist. The mode is what the umask gives. UserError when the disk or the permissions refuse: the
    previous file then still stands, and nothing else is left in the folder.
    """
    temp, _ = temporary_names(path)
    with _told(path):
        _clear_once(path.parent)
        try:
            _write_synced(temp, data)
            _rename(os.replace, temp, path)
        except BaseException:
            with suppress(OSError):
                temp.unlink()
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, with the line ends that it has, whole or not at all."""
    write_atomic(path, text.encode())


def require_writable(path: Path) -> None:
    """UserError where `path` cannot be written, asked before work that takes long; the folder is made.

    Only writing tells: on Windows, in containers and on shares the permissions that a folder shows are not all.
    """
    temp, _ = temporary_names(path)
    with _told(path):
        synced_mkdir(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _write_synced(temp, b"")
        temp.unlink()


def write_folder(path: Path, files: Mapping[str, Data]) -> None:
    """Writes a folder of files (name, as "a" or "sub/a", -> content), whole or not at all.

    An older folder of that name goes only after the new one is complete and synced; should the machine stop between the
    two renames, `remove_stale_temps` puts the older one back. UserError as in `write_atomic`.
    """
    temp, old = temporary_names(path)
    with _told(path):
        _clear_once(path.parent)
        try:
            temp.mkdir()
            with locked_folder(temp):
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
                _rename(os.rename, source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                write_atomic(target, source.read_bytes())
                source.unlink()
        _sync_folder(target.parent)
        _sync_folder(source.parent)


def _clear_once(folder: Path) -> None:
    """Before the first write into a folder: so that no command needs to think of what an earlier one left there.

    Not on Windows, where nothing tells what a living writer is about to rename.
    """
    if sys.platform != "win32" and (place := os.path.abspath(folder)) not in _CLEARED:
        _CLEARED.add(place)
        remove_stale_temps(folder)


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a `.safetensors` file, whole or not at all; equal input gives equal bytes."""
    header, buffers = safetensors_parts(tensors, metadata)

    def parts() -> Iterator[Buffer]:
        yield header
        yield from buffers

    write_atomic(path, parts())


def _write_synced(path: Path, data: Data) -> None:
    """Writes a new file (0666 less the umask) and waits until it is on the disk."""
    buffers = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        lock(fd)
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
        _rename(os.replace, path, old)
    try:
        _rename(os.replace, new, path)
    except BaseException:
        if replaces:
            _rename(os.rename, old, path)
        raise


def _rename(rename: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """On Windows a virus scanner, or what makes an index, holds what was just written for a moment: a second is
    waited for that, before a long run ends at a save."""
    for pause in (*_PAUSES, None):
        try:
            rename(source, target)
            return
        except PermissionError:
            if sys.platform != "win32" or pause is None:
                raise
            time.sleep(pause)


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
    if error.errno == errno.ENAMETOOLONG or getattr(error, "winerror", None) == 206:  # so Windows calls it
        return UserError("not written: the name is too long", file=path, hint="choose a shorter one")
    if error.errno in (errno.EINVAL, errno.EILSEQ):
        text = f"not written: the disk does not take it ({error.strerror})"
        return UserError(text, file=path, hint="choose another name, or another folder")
    if error.errno == errno.ENOENT and sys.platform == "win32" and len(os.path.abspath(path)) >= _LONGEST:
        hint = "choose a folder with a shorter path"
        return UserError(f"not written: Windows takes no path of {_LONGEST} letters and more", file=path, hint=hint)
    if error.errno == errno.ENOENT and (above := Path(error.filename or path).parent).is_dir():
        # folders of the system's own, such as /proc, say so of what is to be made in them
        return UserError(f"not written: {above} takes no new files", file=path, hint="choose another folder")
    if error.errno == errno.ENOENT:
        return UserError(f"not written: the folder {path.parent} does not exist", file=path, hint="make it first")
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return UserError("not written: a file and a folder want the same name", file=path, hint="move one of them away")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "check the folder's permissions, and that no other program has the file open; or choose another folder"
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
