"""How a file of records is divided: into lines, into the rows of a CSV file, the values of a JSON file, pieces of text.

Nothing here is decoded or judged; a file is read from front to back, and no more than one record of it is in memory.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_BYTES = 1 << 22
"""Of one record. A longer one is no conversation but a file whose line ends were lost, or a book."""
BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line of a file, or one record of more of them."""

    start: int
    """Where it begins, in bytes."""
    number: int
    """Counted from 1; of several lines, of the first."""
    data: bytes
    """Of one longer than MAX_BYTES only the beginning."""
    length: int
    """In bytes, of all of it."""
    quotes: int
    """How many " it has."""


def lines(file: BinaryIO) -> Iterator[Line]:
    """Each line, with the bytes that end it."""
    start, number = 0, 1
    while line := file.readline(MAX_BYTES):
        length, quotes, last = len(line), line.count(b'"'), line
        while not last.endswith(b"\n") and (last := file.readline(MAX_BYTES)):
            length, quotes = length + len(last), quotes + last.count(b'"')
        skip = len(BOM) if start == 0 and line.startswith(BOM) else 0
        yield Line(start + skip, number, line[skip:], length - skip, quotes)
        start, number = start + length, number + 1


def rows(file: BinaryIO) -> Iterator[Line]:
    """Each record of a CSV file: a line, or more of them as long as a quote stands open."""
    held: list[Line] = []
    length = quotes = 0
    for line in lines(file):
        if length <= MAX_BYTES:  # what follows is counted only
            held.append(line)
        length, quotes = length + line.length, quotes + line.quotes
        if quotes % 2 == 0:
            yield _row(held, length, quotes)
            held, length, quotes = [], 0, 0
    if held:
        yield _row(held, length, quotes)


def _row(held: list[Line], length: int, quotes: int) -> Line:
    first = held[0]
    return Line(first.start, first.number, b"".join(line.data for line in held).rstrip(b"\r\n"), length, quotes)


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
