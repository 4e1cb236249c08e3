"""Who writes where: a writer holds a lock on what it writes, so what a killed one has left can be told and cleared.

Before its rename what is written has a temporary name: that of a writer's file or folder ends in NEW, and what it
replaces is called OLD and its name for the moment between two renames.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PREFIX, _NEW, _OLD = ".lora-scripts-", ".tmp", ".old-"
_LIVING = 3600
"""Seconds: where nothing tells whether a writer still lives (Windows), what was touched since then counts as its."""


def temporary_names(path: Path) -> tuple[Path, Path]:
    """Beside `path`: the name under which a new version of it is made, and the one for what stood there before."""
    token = f"{_PREFIX}{secrets.token_hex(8)}"
    return path.parent / f"{token}{_NEW}", path.parent / f"{token}{_OLD}{path.name}"


def remove_stale_temps(folder: Path) -> list[Path]:
    """Clears what killed writers have left in `folder`; gives the paths cleared. What is being written stays."""
    cleared: list[Path] = []
    if not folder.is_dir():
        return cleared
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        token, was_old, name = path.name.partition(_OLD)
        if was_old and not (folder / name).exists():
            new = folder / f"{token}{_NEW}"
            if not (new.exists() and _is_held(new)):  # or else its writer is between the two renames
                with suppress(OSError):
                    os.replace(path, folder / name)
            continue
        if not (was_old or path.name.endswith(_NEW)) or _is_held(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # on Windows a file that is still open
                path.unlink()
        if not path.exists():
            cleared.append(path)
    return cleared


def lock(fd: int) -> None:
    """Holds an open file, until it is closed or the process ends, however that ends."""
    if sys.platform != "win32":
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Within it a folder is held."""
    if sys.platform == "win32":
        yield
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        lock(fd)
        yield
    finally:
        os.close(fd)


def _is_held(path: Path) -> bool:
    """Whether a writer may still be at it: it cannot be locked, for whatever reason.

    A network disk refuses what it cannot lock (a folder on NFS, which is opened for reading alone; any file where its
    lock service is down), also where nobody holds it: then what was left behind stays, which loses nothing.
    """
    if sys.platform == "win32":
        return _was_touched(path)
    try:
        # For writing: NFS gives nobody a lock of his own on what is open for reading alone (flock(2)).
        fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _was_touched(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _LIVING
    except OSError:
        return True
