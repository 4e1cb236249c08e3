"""A caption file with some of its captions changed, and every other byte as it was."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from pathlib import Path

from lora_scripts.data.captions import TEXT_COLUMNS
from lora_scripts.data.csv_rows import read_record, write_record
from lora_scripts.utf8 import NEWLINE, read_bytes, read_text


def rewritten(path: Path, changes: Mapping[int, str | None]) -> bytes:
    """The bytes of a metadata file in which the caption of the row on each line of `changes` is another.

    None takes the row out. The lines are those that `read_metadata` gave. Byte order mark and line ends stay.
    """
    pieces = re.split(f"({NEWLINE.pattern})", read_text(path))
    lines, ends = pieces[::2], [*pieces[1::2], ""]
    change = _changed_csv if path.suffix.lower() == ".csv" else _changed_jsonl
    for line, caption in changes.items():
        row = line - 1
        text, after = change(lines, row, caption)
        if text is None:  # gone; lines are kept in place, empty, until all changes are made
            lines[row:after], ends[row:after] = [""] * (after - row), [""] * (after - row)
        else:
            lines[row:after] = [text, *[""] * (after - row - 1)]
            ends[row:after] = [*[""] * (after - row - 1), ends[after - 1]]
    mark = codecs.BOM_UTF8 if read_bytes(path).startswith(codecs.BOM_UTF8) else b""
    return mark + "".join(line + end for line, end in zip(lines, ends, strict=True)).encode()


def _changed_csv(lines: list[str], row: int, caption: str | None) -> tuple[str | None, int]:
    """The new line and the row after the old ones."""
    fields, after = read_record(lines, row)
    if caption is None:
        return None, after
    first = next(i for i, line in enumerate(lines) if line.strip(", \t"))
    header = [field.lower() for field in read_record(lines, first)[0]]
    fields[next(i for i, column in enumerate(header) if column in TEXT_COLUMNS)] = caption
    return write_record(fields), after


def _changed_jsonl(lines: list[str], row: int, caption: str | None) -> tuple[str | None, int]:
    if caption is None:
        return None, row + 1
    record = json.loads(lines[row])
    record[next(key for key in TEXT_COLUMNS if key in record)] = caption
    return json.dumps(record, ensure_ascii=False), row + 1
