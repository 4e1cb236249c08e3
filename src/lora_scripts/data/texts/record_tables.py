"""Records in tables: .parquet files and the .arrow files of a saved data set, through the `datasets` library.

Its tables are mapped into memory, so that a row is read from the disk when it is asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.data.texts.conversations import Record, RecordFault
from lora_scripts.data.texts.forms import FORMS, read_record, unread
from lora_scripts.data.texts.record_index import MANY
from lora_scripts.errors import UserError

INSTALL = 'pip install "lora-scripts[datasets]"'


@dataclass
class Table:
    """The rows of one file that are records."""

    path: Path
    rows: Any
    """A `datasets.Dataset`."""
    digest: str
    lines: list[int] = field(default_factory=list)
    forms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))
    unread: Counter[str] = field(default_factory=Counter)
    """Column of which nothing is learned -> how many records have something in it."""

    def read(self, number: int) -> Record:
        return read_record(_without_nothing(self.rows[self.lines[number] - 1]))[1]


def open_tables(paths: Sequence[Path]) -> tuple[list[Table], list[UserError]]:
    """The tables, and what is wrong with them; without the library one line for each says how to get it."""
    try:
        import datasets
    except ImportError:
        message = f"{paths[0].suffix} files are read with the datasets library"
        return [], [UserError(message, file=path, hint=INSTALL) for path in paths]
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()  # they would stand between our own lines
    tables, faults = list[Table](), list[UserError]()
    for path in paths:
        try:
            if path.suffix.lower() == ".arrow":
                rows = datasets.Dataset.from_file(str(path))
            else:
                rows = datasets.Dataset.from_parquet(str(path))
        except Exception as error:  # pyarrow has errors of its own for every kind of damage
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            faults.append(UserError(f"cannot be read: {reason}", file=path, hint="fetch the file again"))
            continue
        with path.open("rb") as file:
            table = Table(path, rows, hashlib.file_digest(file, "sha256").hexdigest())
        faults += _judge(table)
        tables.append(table)
    return tables, faults


def _judge(table: Table) -> list[UserError]:
    """Notes the rows that are records; what is wrong with the others."""
    faults, further = list[UserError](), 0
    for number, row in enumerate(table.rows, 1):
        try:
            form, _ = read_record(_without_nothing(row))
        except RecordFault as fault:
            if len(faults) < MANY:
                faults.append(UserError(f"row {number}: {fault.message}", file=table.path, hint=fault.hint))
            else:
                further += 1
        else:
            table.lines.append(number)
            table.forms[form] += 1
            table.unread.update(unread(_without_nothing(row)))
    if further:
        faults.append(UserError(f"{further} further records have faults", file=table.path))
    return faults


def _without_nothing(row: dict[str, Any]) -> dict[str, Any]:
    """The row without its empty cells: a table has every column in every row."""
    return {key: value for key, value in row.items() if value is not None}
