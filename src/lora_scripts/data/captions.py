"""Captions from metadata.csv, metadata.jsonl and sidecars.

Reading is strict where a silent misreading would train the wrong words: `a.png,a cat, red` must not become "a cat".
"""

from __future__ import annotations

import json
import posixpath
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.data.csv_rows import MARKS, head_of, other_mark, read_record, write_record
from lora_scripts.data.findings import IMAGE_SUFFIXES
from lora_scripts.errors import UserError
from lora_scripts.units import HALF
from lora_scripts.utf8 import read_lines, read_text

NAME_COLUMNS = ("filename", "file_name")
TEXT_COLUMNS = ("prompt", "text", "caption")
METADATA_SUFFIXES = (".csv", ".jsonl")
_RECODE = "save it as UTF-8, or let lora-scripts check --fix do it"

_OTHER_QUOTES = re.compile("^(?:“([^“”]*)”|‘([^‘’]*)’|'([^']*)')$")
"""Around a caption whose comma they do not keep: a text processor's, or single ones."""
COMMA = re.compile("[,，、]")
"""What parts the tags of a caption: the commas of Chinese and Japanese, too."""
_JSON_NAME = re.compile(r'"file_?name"\s*:\s*"([^"\\]+)"')


def tags_of(caption: str) -> list[str]:
    """What stands between the commas of a caption, without empty parts."""
    return [tag for part in COMMA.split(caption) if (tag := part.strip())]


@dataclass(frozen=True)
class Caption:
    """What an image shows, and the line of the metadata file that says so."""

    text: str
    line: int


class TornRow(UserError):
    """A row of a .csv file with more fields than columns, as by a comma in a caption that stands without quotes."""

    def __init__(self, message: str, path: Path, line: int, hint: str, mended: str, caption: str, mark: str) -> None:
        super().__init__(message, file=path, line=line, hint=hint)
        self.caption = caption
        """What the row will have said then."""
        self.mended = mended
        """The row as it should be."""
        self.mark = MARKS[mark]
        """What parts the columns."""


def tidy(text: str) -> str:
    """A caption on one line: runs of white space, line breaks included, become one space."""
    return " ".join(text.split())


def image_name(raw: str) -> str:
    """A name in a row as a posix path in NFC form; ValueError for one that leaves the image folder."""
    name = posixpath.normpath(unicodedata.normalize("NFC", raw.strip().replace("\\", "/")))
    if name == ".":
        raise ValueError(f'"{raw}" is a folder, not an image')
    if name == ".." or name.startswith(("/", "../")) or name[1:2] == ":":
        raise ValueError(f'"{raw}" leaves the image folder')
    return name


def read_sidecar(path: Path, *, allow_empty: bool = False) -> str:
    """The caption in a .txt or .caption file; several lines become one. UserError, also for what is no caption."""
    text = tidy(read_text(path, mend=_RECODE))
    head = text[:100].lower()
    if head.startswith("version https://git-lfs"):
        raise UserError("is a git-lfs pointer, not the caption itself", file=path, hint="run: git lfs pull")
    if head.startswith(("<!doctype html", "<html")):
        raise UserError(
            "is a web page saved under the name of a caption", file=path, hint="write the caption, or remove it"
        )
    if not text and not allow_empty:
        raise UserError("the caption is empty", file=path, hint="write one, or remove the file")
    return text


def read_metadata(path: Path, faults: list[UserError], *, allow_empty: bool = False) -> dict[str, Caption]:
    """Image name -> caption, from a .csv (`filename,prompt`, or between semicolons or tabs) or a .jsonl (`file_name`,
    `text`) file.

    Names are posix paths relative to the image folder, in Unicode's NFC form. The caption's column may be called
    `prompt`, `text` or `caption`; other columns are left alone. Every fault is appended to `faults`; a row whose
    fault leaves its name readable is still in the result, so that its image is not reported a second time.
    """
    if path.suffix.lower() not in METADATA_SUFFIXES:
        faults.append(UserError("captions are read from a .csv or a .jsonl file", file=path, hint="name one of these"))
        return {}
    try:
        lines = read_lines(path, mend=_RECODE)
    except UserError as fault:
        faults.append(fault)
        return {}
    table = _Table(path, faults, allow_empty)
    if path.suffix.lower() == ".csv":
        _read_csv(lines, table)
    else:
        _read_jsonl(lines, table)
    return table.rows


@dataclass
class _Table:
    """The rows of one metadata file while it is read, and the checks that csv and jsonl share."""

    path: Path
    faults: list[UserError]
    allow_empty: bool

    def __post_init__(self) -> None:
        self.rows: dict[str, Caption] = {}

    def fault(self, line: int, message: str, hint: str | None = None) -> None:
        self.faults.append(UserError(message, file=self.path, line=line, hint=hint))

    def add(self, raw: str, text: str, line: int, *, already_faulty: bool = False) -> None:
        if not raw.strip():
            if not already_faulty:
                self.fault(line, "the row has no file name", "write one, or remove the row")
            return
        try:
            name = image_name(raw)
        except ValueError as error:
            self.fault(line, str(error), "use paths relative to that folder")
            return
        if name in self.rows:
            before = self.rows[name].line
            self.fault(line, f'"{name}" has a caption already, on line {before}', "keep one of them")
            return
        text = tidy(text)
        self.rows[name] = Caption(text, line)
        if not (text or self.allow_empty or already_faulty):
            self.fault(line, f'the caption of "{name}" is empty', "write one, or remove the row and the image")


def _read_csv(lines: list[str], table: _Table) -> None:
    header: list[str] | None = None
    unnamed: list[int] = []
    name_at = text_at = 0
    row, mark = head_of(lines)
    while row < len(lines):
        line = row + 1
        if not lines[row].strip():
            row += 1
            continue
        if header is not None and (other := other_mark(lines[row], mark)):
            table.fault(line, *_other_mark(mark, other))
            if not table.rows:
                return  # the header is what is wrong: the same on every row
            table.add(lines[row].split(other)[0].strip(' "'), "", line, already_faulty=True)
            row += 1
            continue
        try:
            fields, row = read_record(lines, row, mark)
        except ValueError as error:
            message, hint = error.args
            table.fault(line, message, hint)
            table.add(lines[row].split(mark)[0].strip(' "'), "", line, already_faulty=True)
            row += 1
            continue
        if not any(fields):
            continue
        if header is None:
            if problem := header_problem(fields, mark):
                table.fault(line, *problem)
                return
            header = [field.lower() for field in fields]
            unnamed = [i for i, column in enumerate(header) if not column]
            name_at = next(i for i, column in enumerate(header) if column in NAME_COLUMNS)
            text_at = next(i for i, column in enumerate(header) if column in TEXT_COLUMNS)
        elif len(fields) == len(header) and not any(fields[i] for i in unnamed):
            table.add(fields[name_at], fields[text_at], line)
        else:
            table.faults.append(_wrong_count(table.path, line, fields, header, mark))
            table.add(fields[min(name_at, len(fields) - 1)], "", line, already_faulty=True)
    if header is None:
        table.fault(1, "the file is empty", "the first line is filename,prompt, each further line is one image")


def _other_mark(mark: str, other: str) -> tuple[str, str]:
    """What is wrong with a row that has another mark than the header, and the mend."""
    text = f"the row is separated by {MARKS[other]}s, the first line by {MARKS[mark]}s"
    return text, f"write a {MARKS[other]} between the names of the first line, or a {MARKS[mark]} in the row"


def header_problem(fields: list[str], mark: str) -> tuple[str, str] | None:
    """What is wrong with the first line, and the mend: a header with the mark that parts the rows, for they are read by
    that of the header."""
    example = f"write filename{mark}prompt as the first line"
    if mark == "\t":
        example = "write filename prompt as the first line, with a tab between"
    if any(field.lower().endswith(IMAGE_SUFFIXES) for field in fields):
        return "the header line is missing", example
    if len(fields) == 1 and "\uff0c" in fields[0]:
        return "the columns are separated by full-width commas", "separate them with commas"
    for wanted, what in ((NAME_COLUMNS, "file name"), (TEXT_COLUMNS, "caption")):
        found = [field for field in fields if field.lower() in wanted]
        if not found:
            return f"no column for the {what} ({' or '.join(wanted)}) among {', '.join(fields)}", example
        if len(found) > 1:
            return f"more than one column for the {what}: {', '.join(found)}", "keep one of them"
    return None


def _wrong_count(path: Path, line: int, fields: list[str], header: list[str], mark: str) -> UserError:
    """What is wrong with a row whose fields are not the header's, and the mend."""
    if len(fields) < len(header):
        message = f"the row has {len(fields)} of {len(header)} fields"
        return UserError(message, file=path, line=line, hint=f"the columns are {mark.join(header)}")
    whole, hint = joined(fields, header, mark), "put the prompt in double quotes"
    mended = write_record(whole, mark) if whole else ""
    if len(fields) == len(header):  # "filename,prompt," as spreadsheets write it would hide an unquoted comma
        message, hint = "there is text in a column without a name", f"{hint}, or name the column"
    else:
        message = f"too many fields ({len(fields)} instead of {len(header)})"
        hint += f": {mended}" if len(header) == 2 and len(mended) <= 100 else ""
    if whole:
        caption = next(field for field, column in zip(whole, header, strict=False) if column in TEXT_COLUMNS)
        return TornRow(message, path, line, hint, mended, tidy(caption), mark)
    return UserError(message, file=path, line=line, hint=hint)


def joined(fields: list[str], header: list[str], mark: str) -> list[str] | None:
    """The fields of a row with too many of them, the surplus being what marks have cut off its caption; else None.

    `header` in lower case. Columns without a name are meant to be empty.
    """
    named = max(i for i, column in enumerate(header) if column) + 1
    used = max((i for i, field in enumerate(fields) if field), default=-1) + 1
    surplus = used - named
    if surplus <= 0:  # commas behind the last word are left out, too
        return fields[: len(header)] if len(fields) > len(header) else None
    at = next(i for i, column in enumerate(header) if column in TEXT_COLUMNS)
    caption = _OTHER_QUOTES.sub(r"\1\2\3", f"{mark} ".join(fields[at : at + surplus + 1]))
    return [*fields[:at], caption, *fields[at + surplus + 1 : used], *[""] * (len(header) - named)]


def _read_jsonl(lines: list[str], table: _Table) -> None:
    before, example = len(table.faults), 'each line is one object: {"file_name": "a.png", "text": "a cat"}'
    for line, source in enumerate(lines, start=1):
        if not source.strip():
            continue
        try:
            record = json.loads(source, object_pairs_hook=_no_duplicates)
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
            name, text = _one_of(record, NAME_COLUMNS), _one_of(record, TEXT_COLUMNS)
            if HALF.search(name + text):
                raise ValueError("half of a character (a lone surrogate); write the whole")
        except (ValueError, RecursionError) as error:
            what = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
            table.fault(line, what, example)
            named = _JSON_NAME.search(source)
            table.add(named[1] if named else "", "", line, already_faulty=True)
            if line == 1 and source.strip()[0] == "[":
                return  # one JSON document over many lines: the same fault on every one
        else:
            table.add(name, text, line)
    if not table.rows and len(table.faults) == before:
        table.fault(1, "the file is empty", example)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice in the object")
    return result


def _one_of(record: dict[str, object], keys: tuple[str, ...]) -> str:
    found = [key for key in keys if key in record]
    if len(found) != 1:
        raise ValueError(f"{'none' if not found else 'more than one'} of the keys {', '.join(keys)}")
    value = record[found[0]]
    if not isinstance(value, str):
        raise ValueError(f'"{found[0]}" is not a string')
    return value
