"""A metadata file that is changed row by row; whatever is not changed stays as a person wrote it, byte for byte."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lora_scripts.data.captions import (
    NAME_COLUMNS,
    TEXT_COLUMNS,
    image_name,
    read_metadata,
    tidy,
)
from lora_scripts.data.csv_rows import head_of, read_record, write_record
from lora_scripts.errors import UserError, raise_all
from lora_scripts.utf8 import NEWLINE, read_bytes, read_text

_BOM = "\ufeff"


class CaptionTable:
    """The rows of a .csv or .jsonl file in their order, with further columns, blank lines and a byte order mark.

    UserErrors with every fault of the file that is there. A new file is `filename,prompt` or `file_name`, `text`. The
    caller writes `content()`: this layer writes no files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.captions: dict[str, str] = {}
        """Image name -> caption, on one line; empty ones too."""
        self._rows: list[str] = []  # as they stand in the file, line ends included
        self._found: dict[str, tuple[int, list[str]]] = {}  # image name -> index in _rows, fields of that row
        self._bom, self._end, self._mark = "", "\n", ","
        self._columns = ["filename", "prompt"] if self._csv else ["file_name", "text"]
        if path.exists():
            faults: list[UserError] = []
            known = read_metadata(path, faults, allow_empty=True)
            raise_all([fault for fault in faults if fault.message != "the file is empty"])
            self.captions = {name: caption.text for name, caption in known.items()}
            self._read()
        elif self._csv:
            self._rows = [write_record(self._columns) + self._end]

    @property
    def _csv(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def set(self, name: str, caption: str) -> None:
        """Gives the image `name` a caption: in its row, or in a new one at the end. ValueError as `check_name`."""
        check_name(name)
        caption = tidy(caption)
        index, fields = self._found.get(name, (len(self._rows), []))
        if index == len(self._rows):
            if self._rows and not self._rows[-1].endswith(("\n", "\r")):
                self._rows[-1] += self._end
            self._rows.append("")
            fields = self._new(name)
        fields[self._text_at] = caption if self._csv else json.dumps(caption, ensure_ascii=False)
        self._found[name] = index, fields
        row = write_record(fields, self._mark) if self._csv else "".join(fields)
        before = self._rows[index]
        self._rows[index] = row + (before[len(before.rstrip("\r\n")) :] or self._end)
        self.captions[name] = caption

    def content(self) -> str:
        """The whole file."""
        return self._bom + "".join(self._rows)

    @property
    def _text_at(self) -> int:
        return next(i for i, name in enumerate(self._columns) if name.lower() in TEXT_COLUMNS) if self._csv else 1

    def _new(self, name: str) -> list[str]:
        if self._csv:
            return [name if column.lower() in NAME_COLUMNS else "" for column in self._columns]
        name_key, text_key = (json.dumps(key, ensure_ascii=False) for key in self._columns)
        return [f"{{{name_key}: {json.dumps(name, ensure_ascii=False)}, {text_key}: ", "", "}"]

    def _read(self) -> None:
        text = read_text(self.path)
        self._bom = _BOM if read_bytes(self.path).startswith(_BOM.encode()) else ""
        lines, ends = NEWLINE.split(text), [*NEWLINE.findall(text), ""]
        self._end = ends[0] or "\n"
        row, header = 0, False
        first, self._mark = head_of(lines) if self._csv else (0, ",")
        while row < len(lines):
            start, fields = row, [""]
            if not self._csv or row < first or not lines[row].strip():
                row += 1
            else:
                fields, row = read_record(lines, row, self._mark)
            raw = "".join(line + end for line, end in zip(lines[start:row], ends[start:row], strict=True))
            if not raw:
                continue  # what follows the last line end
            self._rows.append(raw)
            if not self._csv:
                self._keep_json(lines[start])
            elif not any(fields):
                continue
            elif not header:
                self._columns, header = fields, True
            else:
                name_at = next(i for i, column in enumerate(self._columns) if column.lower() in NAME_COLUMNS)
                self._found[image_name(fields[name_at])] = len(self._rows) - 1, fields
        if self._csv and not header:  # an empty file
            self._rows = [write_record(self._columns, self._mark) + self._end]

    def _keep_json(self, line: str) -> None:
        if not line.strip():
            return
        record = json.loads(line)
        if not self._found:
            self._columns = [next(k for k in record if k in keys) for keys in (NAME_COLUMNS, TEXT_COLUMNS)]
        name = next(record[key] for key in record if key in NAME_COLUMNS)
        text_key = next(key for key in record if key in TEXT_COLUMNS)
        start, end = _value_of(line, text_key)
        self._found[image_name(name)] = len(self._rows) - 1, [line[:start], line[start:end], line[end:]]


def _value_of(line: str, key: str) -> tuple[int, int]:
    """Where the value of a key of the one JSON object on `line` stands. The line is known to be sound."""
    decoder = json.JSONDecoder()
    at = line.index("{") + 1
    while True:
        at = _skip(line, at, " \t,")
        found, at = decoder.raw_decode(line, at)
        start = _skip(line, at, " \t:")
        _, at = decoder.raw_decode(line, start)
        if found == key:
            return start, at


def _skip(line: str, at: int, blanks: str) -> int:
    while line[at] in blanks:
        at += 1
    return at


def check_name(name: str) -> None:
    """ValueError unless a row can hold the image name `name`, so that it is read as the same name."""
    try:
        same = image_name(name) == name
    except ValueError:
        same = False
    if not same or re.search(r"[\r\n]", name):
        raise ValueError("a metadata file cannot hold this file name")
