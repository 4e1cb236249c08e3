"""Quotes for captions with a comma that stand in a .csv file without them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_scripts.config.values import at_home
from lora_scripts.data.unquoted import MendedRow, mend
from lora_scripts.errors import UserError
from lora_scripts.events import Saved, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.label.store import free_backup


@dataclass(frozen=True)
class Repaired:
    """What became of a table of captions."""

    path: Path
    rows: tuple[MendedRow, ...]
    """Rows that were changed."""


def repair(folder: Path, output: str | None, sink: Sink = ignore) -> Repaired:
    """Puts quotes around the captions of rows with too many fields in `output`, or in the folder's metadata.csv.

    Every other byte stays, and a copy of the file as it was lies beside it. UserError for a file that is not there, is
    no .csv, or begins with a wrong line.
    """
    path = at_home(output) if output else folder / "metadata.csv"
    if path.suffix.lower() != ".csv":
        hint = "name the file with --output, or leave it out for metadata.csv in the folder"
        raise UserError("--repair mends .csv files only", file=path, hint=hint)
    content, rows = mend(path)
    if rows:
        backup = free_backup(path)
        io.write_atomic(backup, path.read_bytes())
        sink(Saved("the captions as they were", backup))
        io.write_atomic(path, content)
    return Repaired(path, tuple(rows))
