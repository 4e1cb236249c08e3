"""One CSV record at a time (RFC 4180), strictly, with the place of every fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lora_scripts.data.findings import IMAGE_SUFFIXES

MARKS = {",": "comma", ";": "semicolon", "\t": "tab"}
"""What may stand between the fields, and what it is called: spreadsheets write the second where a comma is the decimal
mark."""
_IMAGE = "|".join(map(re.escape, IMAGE_SUFFIXES))
_LOOKS_LIKE_A_ROW = {mark: re.compile(rf'\s*"?[^"{mark}]+(?:{_IMAGE})"?\s*{mark}', re.IGNORECASE) for mark in MARKS}
_SAID = re.compile('"?sep=(.?)"?', re.IGNORECASE)
"""A first line by which spreadsheets are told the mark."""


def head_of(lines: Sequence[str]) -> tuple[int, str]:
    """(the row of the header, the mark between the fields): the first line that names something, and the first mark in
    it. Where none names anything, the row behind the last one."""
    for row, line in enumerate(lines):
        if line.strip(' \t,;"') and not _SAID.fullmatch(line.strip()):
            return row, next((sign for sign in line if sign in MARKS), ",")
    return len(lines), ","


def other_mark(line: str, mark: str) -> str:
    """The mark that stands behind the name of a picture at the start of a row, where it is another than `mark`."""
    if _LOOKS_LIKE_A_ROW[mark].match(line):
        return ""
    return next((other for other, row in _LOOKS_LIKE_A_ROW.items() if row.match(line)), "")


def read_record(lines: Sequence[str], row: int, mark: str = ",") -> tuple[list[str], int]:
    """The fields of the record that starts on `lines[row]`, and the row after it; blanks around a field do not count.

    Raises ValueError(message, hint). The csv module would read on to the next quote or the end of the file.
    """
    if '"' not in lines[row]:
        return [field.strip() for field in lines[row].split(mark)], row + 1
    fields: list[str] = []
    column = 0
    while True:
        line = lines[row]
        start = len(line) - len(line[column:].lstrip(" " if mark == "\t" else " \t"))
        if line[start : start + 1] == '"':
            text, row, column = _quoted(lines, row, start + 1, mark)
            line = lines[row]
            end = line.find(mark, column) if mark in line[column:] else len(line)
            if line[column:end].strip():
                raise ValueError("there is text after the closing quote", 'write a quote inside a prompt twice: ""')
        else:
            end = line.find(mark, column) if mark in line[column:] else len(line)
            text = line[column:end]
        fields.append(text.strip())
        if end == len(line):
            return fields, row + 1
        column = end + 1


def _quoted(lines: Sequence[str], row: int, column: int, mark: str) -> tuple[str, int, int]:
    """The text of a quoted field from just behind its opening quote; row and column just behind the closing one."""
    parts: list[str] = []
    while True:
        line = lines[row]
        end = line.find('"', column)
        if end < 0:
            parts.append(line[column:] + "\n")
            row, column = row + 1, 0
            if row == len(lines) or _LOOKS_LIKE_A_ROW[mark].match(lines[row]):
                raise ValueError("the quote that opens here is never closed", 'end the prompt with "')
        elif line[end + 1 : end + 2] == '"':
            parts.append(line[column : end + 1])
            column = end + 2
        else:
            parts.append(line[column:end])
            return "".join(parts), row, end + 1


def write_record(fields: Iterable[str], mark: str = ",") -> str:
    """One line without its end; a field is quoted where it has to be, so that `read_record` gives it back."""
    odd = re.compile(f'["{mark}\r\n]')
    return mark.join('"' + field.replace('"', '""') + '"' if odd.search(field) else field for field in fields)
