"""How a file of records is divided: into lines, into the rows of a CSV file, the values of a JSON file, pieces of text.

Nothing here is decoded or judged; a file is read from front to back, and no more than one record of it is in memory.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from typing import BinaryIO

MAX_BYTES = 1 << 22
"""Of one record. A longer one is no conversation but a file whose line ends were lost, or a book."""
BOM = b"\xef\xbb\xbf"


def lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes, int]]:
    """(start, line, bytes, length) of each line; of one longer than MAX_BYTES only its beginning."""
    start, number = 0, 1
    while line := file.readline(MAX_BYTES):
        length, last = len(line), line
        while not last.endswith(b"\n") and (last := file.readline(MAX_BYTES)):
            length += len(last)
        skip = len(BOM) if start == 0 and line.startswith(BOM) else 0
        yield start + skip, number, line[skip:], length - skip
        start, number = start + length, number + 1


def rows(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(start, line, bytes) of each record: a line, or more of them as long as a quote stands open."""
    held, quotes, begin, first = b"", 0, 0, 1
    for start, number, line, _ in lines(file):
        if not held:
            begin, first = start, number
        held, quotes = held + line, quotes + line.count(b'"')
        if quotes % 2 == 0 or len(held) > MAX_BYTES:
            yield begin, first, held.rstrip(b"\r\n")
            held, quotes = b"", 0
    if held:
        yield begin, first, held.rstrip(b"\r\n")


_PIECES = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
"""Strings, which may hold brackets, and the brackets that count."""


def values(data: mmap.mmap, begin: int) -> Iterator[tuple[int, int]]:
    """Start and end of each object or list that follows from `begin` on, not counting what lies inside of it."""
    depth, start = 0, 0
    for piece in _PIECES.finditer(data, begin):
        mark = piece[0]
        if mark in (b"{", b"["):
            start = start if depth else piece.start()
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth < 0:  # the end of the list of records
                return
            if depth == 0:
                yield start, piece.end()


def cut(data: bytes) -> int:
    """Where to cut: behind the last empty line, else the last line end, else before the last whole character."""
    for mark in (b"\n\n", b"\r\n\r\n", b"\n"):
        at = data.rfind(mark)
        if at > 0:
            return at + len(mark)
    at = len(data)
    while at > len(data) - 4 and data[at - 1] & 0xC0 == 0x80:
        at -= 1
    return at - 1 if data[at - 1] & 0x80 else at
