"""Rows of a .csv file that a comma in a caption without quotes, or what else parts its columns, has torn into too many
fields: told once, and mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.data.captions import TornRow, header_problem, joined
from lora_scripts.data.csv_rows import head_of, read_record, write_record
from lora_scripts.data.rewrite import Lines
from lora_scripts.errors import UserError
from lora_scripts.units import listed, typed

LISTED = 3
"""Lines in a message."""


@dataclass(frozen=True)
class MendedRow:
    """A row as it stands in the file and as it should."""

    line: int
    before: str
    after: str


def told_once(faults: Sequence[UserError]) -> list[UserError]:
    """The faults, the torn rows of a file as one, which names the command that mends them and how the first will be."""
    torn: dict[str, list[TornRow]] = {}
    for fault in faults:
        if isinstance(fault, TornRow):
            torn.setdefault(str(fault.file), []).append(fault)
    once: list[UserError] = []
    for fault in faults:
        rows = torn.get(str(fault.file), []) if isinstance(fault, TornRow) else []
        if len(rows) < 2:
            once.append(fault)
        elif fault is rows[0]:
            once.append(_of_all(rows))
    return once


def _of_all(rows: Sequence[TornRow]) -> UserError:
    lines = listed([str(row.line) for row in rows], LISTED)
    path = Path(str(rows[0].file))
    other = [] if path.name.lower() == "metadata.csv" else ["--output", str(path)]
    command = typed(["lora-scripts", "label", "--input", str(path.parent), *other, "--repair"])
    message = f"{len(rows)} rows have a {rows[0].mark} in a caption that stands without quotes (lines {lines})"
    return UserError(message, file=path, line=rows[0].line, hint=f"{command} puts them: {rows[0].mended}")


def mend(path: Path) -> tuple[bytes, list[MendedRow]]:
    """The file with quotes around the captions of its torn rows, in place of “” or '', every other byte as it is; and
    those rows.

    UserError for a file that cannot be read, or whose first line is wrong.
    """
    file = Lines(path)
    row, mark = head_of(file.lines)
    header: list[str] = []
    rows: list[MendedRow] = []
    while row < len(file.lines):
        start = row
        try:
            fields, row = read_record(file.lines, row, mark)
        except ValueError:  # told by whoever reads it; there is no telling what was meant
            row += 1
            continue
        if not any(fields):
            continue
        if not header:
            if problem := header_problem(fields, mark):
                raise UserError(problem[0], file=path, line=start + 1, hint=problem[1])
            header = [field.lower() for field in fields]
        elif (whole := joined(fields, header, mark)) is not None:
            before, after = "\n".join(file.lines[start:row]), write_record(whole, mark)
            rows.append(MendedRow(start + 1, before, after))
            file.replace(start, row, after)
    return file.content(), rows
