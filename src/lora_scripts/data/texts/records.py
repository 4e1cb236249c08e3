"""A file or a folder of texts -> records that are read when they are wanted; every fault at once."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol, overload

from lora_scripts.data.findings import IMAGE_SUFFIXES
from lora_scripts.data.texts.conversations import Record
from lora_scripts.data.texts.forms import FORMS
from lora_scripts.data.texts.record_index import LINES, TABLES, TEXT_SUFFIXES, index_file
from lora_scripts.errors import UserError, raise_all
from lora_scripts.units import listed

SUFFIXES = (*LINES, ".json", *TABLES, *TEXT_SUFFIXES)
"""What is read without a further package."""
TABLE_SUFFIXES = (".parquet", ".arrow")
"""What is read with the `datasets` library."""
HINT = "records are read from .jsonl, .json, .csv, .tsv, .txt, .md and .parquet"
_ABOUT = re.compile(
    r"(readme|licen[cs]e|changelog|datasheet)([._-].*)?|(dataset_infos?|dataset_dict|state)\.json", re.IGNORECASE
)
"""Files about a data set, which are none of it."""
_SPLIT = re.compile(r"(?:^|[/_.-])(train|valid|validation|val|dev|test|eval)(?:[/_.-]|$)", re.IGNORECASE)


_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters: runs of letters and digits; of Chinese and Japanese, which have no blanks,
    each sign."""
    return _WORDS.findall(text.lower())


class Part(Protocol):
    """The records of one file."""

    @property
    def path(self) -> Path: ...

    @property
    def forms(self) -> Mapping[str, int]:
        """Form -> how many records have it."""
        ...

    @property
    def unread(self) -> Mapping[str, int]:
        """Key of which nothing is learned -> how many records have it."""
        ...

    @property
    def lines(self) -> Sequence[int]:
        """Of each record; counted from 1. Of a table, the row."""
        ...

    @property
    def digest(self) -> str:
        """Of the file's content."""
        ...

    def read(self, number: int) -> Record: ...


@dataclass(frozen=True)
class Place:
    """Where a record stands."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """The records of a data set in the order of file names and lines; each is read from the disk when asked for."""

    parts: tuple[Part, ...]
    left_out: tuple[Path, ...] = ()
    """Files that are named as another split: valid.jsonl beside train.jsonl."""
    unknown: tuple[Path, ...] = ()
    """Files of the folder that are not read, as they are none of records: report.docx."""

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part.lines) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, number = self._find(index)
        return part.read(number)

    def place(self, index: int) -> Place:
        """The file and the line of a record."""
        part, number = self._find(index)
        return Place(part.path, part.lines[number])

    @property
    def forms(self) -> dict[str, int]:
        """Form -> how many records have it; forms that do not occur are left out."""
        counts = Counter[str]()
        for part in self.parts:
            counts.update(part.forms)
        return {form: counts[form] for form in FORMS if counts[form]}

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What of the data set is not learned, though it stands there; and the mend."""
        notes, keys = list[tuple[str, str]](), Counter[str]()
        for part in self.parts:
            keys.update(part.unread)
        if keys:
            named = listed([f"{key} ({count})" for key, count in keys.most_common()], 8)
            notes.append((f"nothing is learned of these keys of records: {named}", "rename what is to be learned"))
        if self.unknown:
            kinds = Counter(path.suffix.lower() or path.name for path in self.unknown)
            named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
            notes.append((f"files of the folder that are not read: {named}", _mend(self.unknown)))
        return notes

    @property
    def fingerprint(self) -> str:
        """A digest of the content of all files, 64 hex digits."""
        return hashlib.sha256("\n".join(part.digest for part in self.parts).encode()).hexdigest()

    def _find(self, index: int) -> tuple[Part, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)


def list_records(source: Path, split: str = "train") -> tuple[Records, list[UserError]]:
    """The records of a file, or of all files below a folder, and everything that is wrong with them.

    Where files are named as splits (train.jsonl, valid.jsonl), only those of `split` are read. Hidden files and files
    about the data set (README.md) are left out. UserError if there is nothing to read at all.
    """
    if not source.exists():
        raise UserError("no such file or folder", file=source, hint="the key names a file of records, or a folder")
    files, unknown = _files(source) if source.is_dir() else ([source], [])
    wanted, others = _of_split(files, source, split) if source.is_dir() else (files, [])
    parts: list[Part] = []
    faults: list[UserError] = []
    tables = [path for path in wanted if path.suffix.lower() in TABLE_SUFFIXES]
    if tables:
        from lora_scripts.data.texts.record_tables import open_tables

        opened, table_faults = open_tables(tables)
        parts += opened
        faults += table_faults
    for path in wanted:
        if path.suffix.lower() in SUFFIXES:
            index = index_file(path)
            faults += index.faults
            parts.append(index)
        elif path.suffix.lower() not in TABLE_SUFFIXES:
            faults.append(UserError(f"{path.suffix or 'this'} is not a file of records", file=path, hint=_mend([path])))
    order = {path: number for number, path in enumerate(wanted)}
    parts.sort(key=lambda part: order[part.path])
    return Records(tuple(part for part in parts if len(part.lines)), tuple(others), tuple(unknown)), faults


def read_records(source: Path, split: str = "train") -> Records:
    """As `list_records`. Raises UserError or UserErrors with everything that is wrong."""
    records, faults = list_records(source, split)
    raise_all(faults)
    return records


def holds_records(path: Path) -> bool:
    """Whether a path is a file of records, or a folder with such files and no picture."""
    if path.is_file():
        return path.suffix.lower() in (*SUFFIXES, *TABLE_SUFFIXES)
    if not path.is_dir():
        return False
    suffixes = {file.suffix.lower() for file in path.rglob("*") if file.is_file()}
    return bool(suffixes & {*SUFFIXES, *TABLE_SUFFIXES}) and suffixes.isdisjoint(IMAGE_SUFFIXES)


def _mend(paths: Sequence[Path]) -> str:
    """What to do with files that are not read."""
    kinds = {path.suffix.lower() for path in paths}
    mends = [mend for suffixes, mend in _MENDS.items() if kinds & set(suffixes)]
    return "; ".join([*mends, HINT])


_MENDS = {
    (".docx", ".doc", ".odt", ".rtf", ".pdf"): "save documents as .txt, UTF-8",
    (".xlsx", ".xls", ".ods"): "save tables as .csv, UTF-8",
    (".gz", ".zip", ".zst", ".xz", ".bz2"): "unpack archives",
}


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of records below a folder, sorted by name, and the others. UserError if there is none of records."""
    readable = (*SUFFIXES, *TABLE_SUFFIXES)
    below = sorted(path for path in folder.rglob("*") if path.is_file())
    shown = [p for p in below if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files = [p for p in shown if p.suffix.lower() in readable and not _ABOUT.fullmatch(p.name)]
    if not files:
        kinds = Counter(path.suffix.lower() or path.name for path in shown)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        raise UserError(f"no records found; the folder holds {told or 'nothing'}", file=folder, hint=_mend(shown))
    others = [p for p in shown if p.suffix.lower() not in readable and not _ABOUT.fullmatch(p.name)]
    return files, others


def _of_split(files: Sequence[Path], folder: Path, split: str) -> tuple[list[Path], list[Path]]:
    """The files of a split, and the others. All are of the split if none is named as the training split."""
    names = {path: _split_of(path.relative_to(folder).as_posix()) for path in files}
    if "train" not in names.values():
        return list(files), []
    chosen = [path for path in files if names[path] == split]
    return chosen, [path for path in files if names[path] != split]


def _split_of(name: str) -> str | None:
    """ "train", "valid" or "test", if a file's name says so."""
    found = _SPLIT.findall(name)
    if not found:
        return None
    word = found[-1].lower()
    return {"val": "valid", "validation": "valid", "dev": "valid", "eval": "valid"}.get(word, word)
