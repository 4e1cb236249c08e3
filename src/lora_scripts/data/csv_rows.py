"""One CSV record at a time (RFC 4180), strictly, with the place of every fault."""

from __future__ import annotations

import re

from lora_scripts.data.findings import IMAGE_SUFFIXES

_IMAGE = "|".join(map(re.escape, IMAGE_SUFFIXES))
_LOOKS_LIKE_A_ROW = re.compile(rf'\s*"?[^",]+(?:{_IMAGE})"?\s*,', re.IGNORECASE)


def read_record(lines: list[str], row: int) -> tuple[list[str], int]:
    """The fields of the record that starts on `lines[row]`, and the row after it; blanks around a field do not count.

    Raises ValueError(message, hint). The csv module would read on to the next quote or the end of the file.
    """
    if '"' not in lines[row]:
        return [field.strip() for field in lines[row].split(",")], row + 1
    fields: list[str] = []
    column = 0
    while True:
        line = lines[row]
        start = len(line) - len(line[column:].lstrip(" \t"))
        if line[start : start + 1] == '"':
            text, row, column = _quoted(lines, row, start + 1)
            line = lines[row]
            end = line.find(",", column) if "," in line[column:] else len(line)
            if line[column:end].strip():
                raise ValueError("there is text after the closing quote", 'write a quote inside a prompt twice: ""')
        else:
            end = line.find(",", column) if "," in line[column:] else len(line)
            text = line[column:end]
        fields.append(text.strip())
        if end == len(line):
            return fields, row + 1
        column = end + 1


def _quoted(lines: list[str], row: int, column: int) -> tuple[str, int, int]:
    """The text of a quoted field from just behind its opening quote; row and column just behind the closing one."""
    parts: list[str] = []
    while True:
        line = lines[row]
        end = line.find('"', column)
        if end < 0:
            parts.append(line[column:] + "\n")
            row, column = row + 1, 0
            if row == len(lines) or _LOOKS_LIKE_A_ROW.match(lines[row]):
                raise ValueError("the quote that opens here is never closed", 'end the prompt with "')
        elif line[end + 1 : end + 2] == '"':
            parts.append(line[column : end + 1])
            column = end + 2
        else:
            parts.append(line[column:end])
            return "".join(parts), row, end + 1


def write_record(fields: list[str]) -> str:
    """One line without its end; a field is quoted where it has to be, so that `read_record` gives it back."""
    return ",".join('"' + field.replace('"', '""') + '"' if re.search('[",\r\n]', field) else field for field in fields)
