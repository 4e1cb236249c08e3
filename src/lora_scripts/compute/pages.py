"""Pages of RAM: which stay with this process, and which the system may have back."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_DONTNEED, _PAGEOUT = 4, 21
"""MADV_DONTNEED, MADV_PAGEOUT (man madvise)."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (man mallopt)."""
_OWN_BLOCK = 2**25
"""Bytes from which something is mapped by itself: as far as glibc raises it by itself."""
FREED = 2**28
"""Bytes that a step on a CPU frees and the next one asks for again, roughly: one of a UNet of 860 million numbers has
20,000 pages cleared otherwise with four pictures of 128 px, 57,000 with one of 512."""


def keep_freed(most: int = FREED) -> None:
    """From now on up to `most` bytes of what is freed stay with this process, for what comes next (glibc; elsewhere
    nothing is done). By itself it keeps 64 MiB at the heap's end at most, and has the rest given and cleared anew."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _OWN_BLOCK)  # named as well: naming one keeps the other from growing by itself
        libc.mallopt(_TRIM_THRESHOLD, most)


def give_back(files: Iterable[Path]) -> None:
    """Tells the system that what is mapped of these files, and what was freed, need not stay with this process (Linux;
    elsewhere nothing is done).

    Nothing is lost: what is read again comes again from the file, which the system keeps in its cache as long as it has
    room, so that the next start need not wait for the disk.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what was freed
        ctypes.CDLL(None).malloc_trim(0)
    names = {str(path.resolve()) for path in files}
    with _nothing_collected():  # a model that is let go now would leave its addresses to something else
        for begin, size, own in _mapped(names):
            # Pages that were written to are this process's own, and stand in no file: those may only be swapped.
            advice = _PAGEOUT if own else _DONTNEED
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), advice)


def _mapped(names: Collection[str]) -> list[tuple[int, int, bool]]:
    """(address, bytes, whether some were written to) of everything that is mapped of these files."""
    found, place = [], None
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return []
    for row in (line.split(maxsplit=5) for line in lines):
        if "-" in row[0]:  # 7f00-7f01 r--p 00000000 fe:00 42 /a/file
            begin, end = (int(number, 16) for number in row[0].split("-"))
            place = (begin, end - begin) if len(row) == 6 and row[5] in names else None
        elif place is not None and row[0] == "Anonymous:":
            found.append((*place, row[1] != "0"))
    return found


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Within it what is let go by reference alone is let go."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
