"""Where each record of a file begins and ends, so that a file of any size is never in memory as a whole."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lora_scripts.data.texts.conversations import Record, RecordFault, Text
from lora_scripts.data.texts.forms import FORMS, MORE, form_of, read_record, unread
from lora_scripts.data.texts.record_lines import BOM, MAX_BYTES, cut, lines, rows, values
from lora_scripts.errors import UserError
from lora_scripts.units import number_of
from lora_scripts.utf8 import guess_encoding, load_json

SECTION = 1 << 16
"""Bytes of running text that are read at once, about: a longer document is cut at an empty line."""
MANY = 20
"""Faults of one file that are told one by one; further ones are counted."""
_NOT_UTF8 = "save it as UTF-8"


@dataclass
class Index:
    """Of one file: the bytes and the line of each record that can be read, and what is wrong with the others."""

    path: Path
    starts: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    lines: array[int] = field(default_factory=lambda: array("Q"))
    forms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))
    unread: Counter[str] = field(default_factory=Counter)
    """Key of which nothing is learned -> how many records have it."""
    faults: list[UserError] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    """Of a CSV file."""
    delimiter: str = ","
    digest: str = ""
    """SHA-256 of the file's bytes."""
    _uncounted: int = 0

    def add(self, start: int, length: int, line: int, form: str) -> None:
        self.starts.append(start)
        self.lengths.append(length)
        self.lines.append(line)
        self.forms[form] += 1

    def fault(self, line: int | None, message: str, hint: str | None = None) -> None:
        if len(self.faults) < MANY:
            self.faults.append(UserError(message, file=self.path, line=line, hint=hint))
        else:
            self._uncounted += 1

    def close(self) -> None:
        if self._uncounted:
            self.faults.append(UserError(f"{self._uncounted} further records have faults", file=self.path))

    def read(self, number: int) -> Record:
        """One record, read again from the file. UserError if the file has changed so that it is none any more."""
        with self.path.open("rb") as file:
            file.seek(self.starts[number])
            data = file.read(self.lengths[number])
        try:
            return self._record(data, number)
        except (RecordFault, ValueError):
            message = "the file has changed while it was being used"
            raise UserError(message, file=self.path, line=self.lines[number], hint="start again") from None

    def _record(self, data: bytes, number: int) -> Record:
        kind = self.path.suffix.lower()
        if kind in TEXT_SUFFIXES:
            return Text(_as_text(data), begins=number == 0, ends=number == len(self.starts) - 1)
        if kind in TABLES:
            return read_record(self.row(split_row(_as_text(data), self.delimiter)))[1]
        return read_record(load_json(data.decode()))[1]

    def row(self, cells: list[str]) -> dict[str, str]:
        """The cells by their columns; an empty cell of another column than the first two counts as none."""
        return {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell or name not in _OPTIONAL}


LINES, TABLES, TEXT_SUFFIXES = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".txt", ".md")
_OPTIONAL = (*MORE, "system", "history", "tools")


def index_file(path: Path) -> Index:
    """Reads a file once from end to end and gives its index; every fault is in there, none is raised."""
    index = Index(path)
    readers: dict[str, Callable[[Index], None]] = {
        **dict.fromkeys(LINES, _index_lines),
        ".json": _index_json,
        **dict.fromkeys(TABLES, _index_csv),
        **dict.fromkeys(TEXT_SUFFIXES, _index_text),
    }
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            index.digest = hashlib.file_digest(file, "sha256").hexdigest()
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            index.fault(1, "this is UTF-16 text", _NOT_UTF8)
        else:
            readers[path.suffix.lower()](index)
    except OSError as error:
        index.fault(None, f"cannot be read: {error.strerror or error}")
    if not index.starts and not index.faults:
        index.fault(None, "the file is empty", "remove it")
    index.close()
    return index


def _judge(index: Index, data: bytes, start: int, line: int, read: Callable[[str], object]) -> None:
    """Adds the record to the index, or its fault."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        inside = line + data.count(b"\n", 0, error.start)
        index.fault(inside, f"not UTF-8 text; it looks like {guess_encoding(data)}", _NOT_UTF8)
        return
    try:
        value = read(text)
        form, _ = read_record(value)
    except RecordFault as fault:
        index.fault(line, fault.message, fault.hint)
    else:
        index.unread.update(unread(value) if isinstance(value, dict) else ())
        index.add(start, len(data), line, form)


# --- .jsonl -----------------------------------------------------------------------------------------------------------


def _index_lines(index: Index) -> None:
    with index.path.open("rb") as file:
        for line in lines(file):
            if line.length > MAX_BYTES:
                index.fault(line.number, *_too_long(line.length))
            elif line.data.strip() in (b"{", b"[") and not index.starts and not index.faults:
                hint = "name the file .json; in a .jsonl file each line is a record"
                index.fault(line.number, "JSON over several lines", hint)
                return
            elif line.data.strip():
                _judge(index, line.data.rstrip(b"\r\n"), line.start, line.number, _json_line)


def _too_long(length: int) -> tuple[str, str]:
    hint = "one line is one record; divide it, or put running text into a .txt file, which is read in pieces"
    return f"a record of {length / 2**20:.1f} MB, more than the {MAX_BYTES >> 20} MB that are read as one", hint


def _json_line(text: str) -> object:
    try:
        return load_json(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        if rest == "," and error.msg == "Extra data":
            raise RecordFault("a comma behind the record", "remove it: a line holds a record and no more") from None
        if not rest or error.msg.startswith("Unterminated string"):
            raise RecordFault(
                "half a record: the JSON ends in the middle", "write the line again, or remove it"
            ) from None
        if error.msg == "Extra data":
            raise RecordFault("two records on one line", "one line holds one record") from None
        raise RecordFault(f"not JSON: {error.msg} (column {error.colno})", "mend the line, or remove it") from None
    except ValueError as error:
        raise RecordFault(str(error), "mend the line, or remove it") from None


# --- .json ------------------------------------------------------------------------------------------------------------

_NOT_BETWEEN = re.compile(rb"[^\s,]")


def _index_json(index: Index) -> None:
    """A list of records, one record, or (as many files are) records one after the other."""
    if index.path.stat().st_size == 0:
        return
    with index.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = len(BOM) if data[: len(BOM)] == BOM else 0
        first = _NOT_BETWEEN.search(data, begin)
        if first is None:
            return
        if first[0] not in b"[{":
            index.fault(1, "not JSON: it begins with neither [ nor {", WANTED_JSON)
            return
        in_list = first[0] == b"["
        end, line, counted = first.end() if in_list else first.start(), 1, 0
        for start, stop in values(data, end):
            between = data[end:start].strip(b" \t\r\n,")
            line += data[counted:start].count(b"\n")
            end, counted = stop, start
            if between:
                index.fault(line, f"not a record: {_excerpt(between)}", WANTED_JSON)
            if stop - start > MAX_BYTES:
                index.fault(line, *_too_long(stop - start))
            else:
                _judge(index, data[start:stop], start, line, _json_line)
        more = _NOT_BETWEEN.search(data, end)
        at = more.start() if more else len(data)
        line += data[counted:at].count(b"\n")
        rest = data[at : at + MAX_BYTES].rstrip()
        if rest[:1] == b"{":
            index.fault(line, "half a record: the JSON ends in the middle", "write the file again")
        elif in_list and rest != b"]":
            what = f"not a record: {_excerpt(rest)}" if rest else "the list of records is never closed"
            index.fault(line, what, WANTED_JSON)
        elif not in_list and rest:
            index.fault(line, f"not a record: {_excerpt(rest)}", WANTED_JSON)


WANTED_JSON = "a .json file is a list of records; one record a line is .jsonl"


def _excerpt(data: bytes) -> str:
    text = data[:40].decode(errors="replace")
    return json.dumps(text + " …" * (len(data) > 40), ensure_ascii=False)


# --- .csv -------------------------------------------------------------------------------------------------------------

_UNCLOSED = "the quote that opens here is never closed", 'write a quote inside a cell twice: ""'
_EMPTY = b' \t\r\n,;"'
"""All that a row without anything in it holds, as tables put out by a spreadsheet end."""
_SEP = re.compile(rb'"?sep=."?', re.IGNORECASE)
"""The first line by which Excel is told what stands between the cells."""
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def split_row(text: str, delimiter: str) -> list[str]:
    """The cells of one record (RFC 4180). Raises RecordFault."""
    cells, at = list[str](), 0
    while True:
        if text[at : at + 1] == '"':
            quoted = _QUOTED.match(text, at)
            if quoted is None:
                raise RecordFault(*_UNCLOSED)
            cells.append(quoted[1].replace('""', '"'))
            at = quoted.end()
            if at < len(text) and text[at] != delimiter:
                raise RecordFault("there is text after a closing quote", 'write a quote inside a cell twice: ""')
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            cells.append(text[at:end])
            at = end
        if at == len(text):
            return cells
        at += 1


def _index_csv(index: Index) -> None:
    with index.path.open("rb") as file:
        for row in rows(file):
            if not row.data.strip(_EMPTY) or (not index.columns and _SEP.fullmatch(row.data.strip())):
                continue
            if row.length > MAX_BYTES:
                index.fault(row.number, *(_UNCLOSED if row.quotes % 2 else _too_long(row.length)))
                if not index.columns:
                    return
            elif index.columns:
                _judge(index, row.data, row.start, row.number, lambda text: _row_of(index, text))
            elif not _read_header(index, row.data, row.number):
                return


def _read_header(index: Index, data: bytes, line: int) -> bool:
    """Takes the columns' names and the mark between them from the first row."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        index.fault(line, f"not UTF-8 text; it looks like {guess_encoding(data)}", _NOT_UTF8)
        return False
    for delimiter in (",", ";", "\t"):
        try:
            names = [name.strip().lower() for name in split_row(text, delimiter)]
        except RecordFault:
            continue
        if form_of(dict.fromkeys(names, "")) is not None:
            index.columns, index.delimiter = names, delimiter
            return True
    hint = "the first row names them: instruction,input,output or prompt,completion or text"
    index.fault(line, f"no columns of a known form: {text[:80]}", hint)
    return False


def _row_of(index: Index, text: str) -> dict[str, str]:
    cells = split_row(text, index.delimiter)
    if len(cells) != len(index.columns):
        count = number_of(len(cells), "cell")
        raise RecordFault(
            f"{count}, but the first row names {len(index.columns)} columns", "quote a cell that has a comma"
        )
    return index.row(cells)


# --- .txt and .md -----------------------------------------------------------------------------------------------------


def _as_text(data: bytes) -> str:
    """UTF-8 with line ends as \\n."""
    return data.decode().replace("\r\n", "\n").replace("\r", "\n")


def _index_text(index: Index) -> None:
    """One document a file; a long one is cut at empty lines, else at line ends, else between characters."""
    with index.path.open("rb") as file:
        start = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(start)
        line, held = 1, b""
        while held := held + file.read(2 * SECTION - len(held)):
            end = len(held) if len(held) <= SECTION else cut(held[:SECTION])
            piece, held = held[:end], held[end:]
            if b"\0" in piece:
                at = line + piece.count(b"\n", 0, piece.index(b"\0"))
                index.fault(at, "holds NUL bytes; it is UTF-16, or no text at all", _NOT_UTF8)
            elif piece.strip():
                _judge(index, piece, start, line, lambda text: {"text": text})
            if index.faults:
                return
            start, line = start + end, line + piece.count(b"\n")
