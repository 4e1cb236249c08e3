"""What earlier starts found in pictures: one with the same place, size and times is not read and decoded again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_scripts.data.scan import Sample, inspect
from lora_scripts.errors import UserError

_SETTLED = 2_000_000_000
"""Nanoseconds: the coarsest clock of a disk in use (FAT), within a tick of which a file could change once more."""
_SETS = 4
"""Sets of pictures of which it is remembered which are copies."""


class Seen:
    """A file in which it is kept what was found in pictures. With a damaged one, or none, everything is looked at.

    A picture is known again by its place on the disk, its size, and the times of the last change of its content and of
    anything about it, the last of which no program can set (on Windows: when it was made).
    """

    def __init__(self, record: Path) -> None:
        self._record, self._begun = record, time.time_ns()
        self._kept = _read(record)
        self._pictures, self._copies = dict(self._kept[0]), dict(self._kept[1])

    def known(self, path: Path) -> Sample | None:
        """As `data.scan.inspect`, without `Sample.small`; None for a picture that is to be looked at."""
        row = self._pictures.get(place := str(path))
        if row is None or row[:-3] != _mark(place):
            return None
        digest, width, height = row[-3:]
        return Sample(path, "", "", width, height, digest)

    def look(self, path: Path, small: int) -> Sample | UserError:
        """As `data.scan.inspect`, and remembers it."""
        mark, found = _mark(path), inspect(path, small)
        if isinstance(found, Sample) and mark and mark == _mark(path) and self._begun - max(mark[-2:]) > _SETTLED:
            self._pictures[str(path)] = [*mark, found.digest, found.width, found.height]
        return found

    def copies(self, samples: Sequence[Sample], find: Callable[[Sequence[Sample]], set[str]]) -> set[str]:
        """`find(samples)`: names, remembered for the same pictures under the same names."""
        key = hashlib.sha256(json.dumps([[s.name, s.digest] for s in samples]).encode()).hexdigest()
        if key not in self._copies:
            self._copies[key] = sorted(find(samples))
        return set(self._copies[key])

    def save(self, write: Callable[[Path, str], None]) -> None:
        """Keeps what was found; then nothing of it is held in memory."""
        now = self._pictures, dict(list(self._copies.items())[-_SETS:])
        if now != self._kept:
            kept = {"pictures": now[0], "copies": now[1]}
            write(self._record, json.dumps({**kept, "sha256": _digest(kept)}) + "\n")
        self._kept = self._pictures, self._copies = {}, {}


def _mark(path: Path | str) -> list[int]:
    """Place, size and times of a file; nothing where it cannot be told."""
    try:
        stat = os.stat(path)
    except OSError:
        return []
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(record: Path) -> tuple[dict[str, list[Any]], dict[str, list[str]]]:
    try:
        found = json.loads(record.read_text("utf-8"))
        if found.pop("sha256") != _digest(found):  # a digit that is another one would be a picture of another size
            return {}, {}
        return _lists(found["pictures"], 8), _lists(found["copies"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}


def _digest(kept: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def _lists(found: dict[str, Any], length: int | None = None) -> dict[str, list[Any]]:
    return {key: row for key, row in found.items() if isinstance(row, list) and length in (None, len(row))}
