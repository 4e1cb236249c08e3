"""Files that weights are mapped from: before anybody writes into one, what is mapped becomes the process's own.

On a CPU weights in the file's own precision are not copied but mapped: who writes into the file writes into the model,
and who makes it shorter ends the process (SIGBUS). Copying all of them would cost every start a second for a GB. Linux
lends files out instead (man fcntl, F_SETLEASE): somebody who opens one for writing waits, for 45 s at most, while the
pages are copied and put in the place of the mapped ones, under the same addresses, so that no tensor notices.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

_READ, _WRITE, _PRIVATE, _ANONYMOUS, _MOVE_TO = 1, 2, 2, 32, 3
"""PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MREMAP_MAYMOVE | MREMAP_FIXED (man mmap, man mremap)."""


class Leases:
    """Within it, `take` lends files. Where the system or the disk lends none (another system than Linux, a disk of the
    network, somebody else's file, one that is being written to), or in another thread than the first, it does nothing.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Path, int]] = []
        self._told: Callable[[Path], None] = lambda path: None
        self._before: Any = None

    def __enter__(self) -> Leases:
        if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGIO, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for _path, fd in self._held:
            os.close(fd)
        self._held = []
        if self._before is not None:
            signal.signal(signal.SIGIO, self._before)

    def take(self, paths: Iterable[Path], told: Callable[[Path], None]) -> None:
        """`told`: what happens when somebody wants to write into one, and what was mapped of it is mapped no more."""
        self._told = told
        if sys.platform != "linux" or self._before is None:
            return
        import fcntl

        for path in paths:
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY)
                try:
                    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                except OSError:
                    os.close(fd)
                else:
                    self._held.append((path, fd))

    def _asked(self, number: int, frame: Any) -> None:
        """Somebody waits for at least one of the files."""
        if sys.platform != "linux":
            return
        import fcntl

        for path, fd in list(self._held):
            if fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                self._held.remove((path, fd))
                try:
                    if own(path):
                        self._told(path)
                finally:
                    os.close(fd)


def own(path: Path) -> bool:
    """Copies what is mapped of a file into memory of this process, in the same place. False: nothing was mapped."""
    name, found = str(path.resolve()), False
    for line in Path("/proc/self/maps").read_text().splitlines():
        row = line.split(maxsplit=5)
        if len(row) == 6 and row[5] == name:
            begin, end = (int(place, 16) for place in row[0].split("-"))
            _replace(begin, end - begin, _READ | _WRITE if "w" in row[1] else _READ)
            found = True
    return found


def _replace(begin: int, size: int, rights: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    place, length, nothing = ctypes.c_void_p(begin), ctypes.c_size_t(size), ctypes.c_size_t(0)
    copy = libc.mmap(None, length, _READ | _WRITE, _PRIVATE | _ANONYMOUS, -1, nothing)
    if copy == ctypes.c_void_p(-1).value:
        raise MemoryError
    ctypes.memmove(copy, begin, size)
    libc.mprotect(ctypes.c_void_p(copy), length, rights)
    if libc.mremap(ctypes.c_void_p(copy), length, length, _MOVE_TO, place) != begin:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
