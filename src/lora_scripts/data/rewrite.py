"""A caption file with some of its captions changed, and every other byte as it was."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from pathlib import Path

from lora_scripts.data.captions import TEXT_COLUMNS
from lora_scripts.data.csv_rows import head_of, read_record, write_record
from lora_scripts.utf8 import NEWLINE, read_bytes, read_text


class Lines:
    """The lines of a text file, some of which become others, with every other byte as it was."""

    def __init__(self, path: Path) -> None:
        """UserError for a file that cannot be read, or is no text."""
        pieces = re.split(f"({NEWLINE.pattern})", read_text(path))
        self.lines, self._ends = pieces[::2], [*pieces[1::2], ""]
        self._mark = codecs.BOM_UTF8 if read_bytes(path).startswith(codecs.BOM_UTF8) else b""

    def replace(self, start: int, after: int, text: str | None) -> None:
        """One line in the place of those from `start` up to `after`; None: none. All others keep their numbers, for
        what is gone stays as empty lines without an end."""
        gone, end = [""] * (after - start - 1), self._ends[after - 1]
        self.lines[start:after] = [text or "", *gone]
        self._ends[start:after] = [*gone, "" if text is None else end]

    def content(self) -> bytes:
        """The whole file."""
        return self._mark + "".join(map(str.__add__, self.lines, self._ends)).encode()


def rewritten(path: Path, changes: Mapping[int, str | None]) -> bytes:
    """The bytes of a metadata file in which the caption of the row on each line of `changes` is another.

    None takes the row out. The lines are those that `read_metadata` gave. Byte order mark and line ends stay.
    """
    file = Lines(path)
    change = _changed_csv if path.suffix.lower() == ".csv" else _changed_jsonl
    for line, caption in changes.items():
        text, after = change(file.lines, line - 1, caption)
        file.replace(line - 1, after, text)
    return file.content()


def _changed_csv(lines: list[str], row: int, caption: str | None) -> tuple[str | None, int]:
    """The new line and the row after the old ones."""
    first, mark = head_of(lines)
    fields, after = read_record(lines, row, mark)
    if caption is None:
        return None, after
    header = [field.lower() for field in read_record(lines, first, mark)[0]]
    fields[next(i for i, column in enumerate(header) if column in TEXT_COLUMNS)] = caption
    return write_record(fields, mark), after


def _changed_jsonl(lines: list[str], row: int, caption: str | None) -> tuple[str | None, int]:
    if caption is None:
        return None, row + 1
    record = json.loads(lines[row])
    record[next(key for key in TEXT_COLUMNS if key in record)] = caption
    return json.dumps(record, ensure_ascii=False), row + 1
