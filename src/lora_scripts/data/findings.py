"""What is wrong with a data set, in words: `check` finds it, `report` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing about one picture, a few, or the whole set (no files)."""

    kind: str
    """Which test found it: "near_duplicate", "blurred", "caption_truncated" …"""
    severity: Severity
    """error: training would stop or be wrong; warning: the LoRA would be worse; note: good to know."""
    files: tuple[str, ...]
    """Names relative to the image folder, the first being the one that the mend is about."""
    message: str
    """What it is, with the figure."""
    mend: str
    """What to do."""
    sure: float | None = None
    """How sure, 0 … 1, for tests that can be wrong; None for facts."""
    source: str | None = None
    """Where the text stands, as file:line, for captions."""


HEIC = (".heic", ".heif")
"""As phones take them; read where the package pillow-heif is."""
READS_HEIC = find_spec("pillow_heif") is not None
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", *(HEIC if READS_HEIC else ()))
"""Suffixes of pictures that are read."""
OTHER_PICTURES = {*HEIC, ".gif", ".tif", ".tiff", ".jxl", ".jp2", ".psd", ".tga", ".dng"} - {*IMAGE_SUFFIXES}
"""Suffixes of what people take for pictures of a set, and what is not read."""
HEIC_MEND = "pip install pillow-heif, or convert it to JPEG or PNG"
SIDECAR_SUFFIXES = (".txt", ".caption")
_TABLES = frozenset([".csv", ".jsonl", ".tsv", ".xlsx", ".xls", ".ods"])


def left_out(names: Collection[str], *, tables: bool) -> list[Finding]:
    """Notes on files that lie among the pictures and are not read: pictures of other kinds and, with `tables`, what may
    hold captions under another name than metadata.csv."""
    counts, notes = Counter[str](), list[Finding]()
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        counts[suffix] += suffix in OTHER_PICTURES
        plain = suffix in (".csv", ".jsonl")
        if tables and suffix in _TABLES and not (plain and PurePosixPath(name).stem.lower() == "metadata"):
            text = f"{name} lies there, but captions are read from metadata.csv or metadata.jsonl"
            mend = f"name it metadata{suffix}, or set metadata_path" if plain else "save it as metadata.csv"
            notes.append(Finding("other_table", "note", (), text, mend))
    notes += _other_texts(names, known=bool(notes)) if tables else []
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(counts.items()) if count)
    if kinds:
        message = f"{counts.total()} not read ({kinds})"
        mend = "convert to JPEG or PNG"
        mend = f"pip install pillow-heif for HEIC, or {mend}" if any(counts[suffix] for suffix in HEIC) else mend
        notes.insert(0, Finding("not_read", "note", (), message, mend))
    return notes


def _other_texts(names: Collection[str], *, known: bool) -> list[Finding]:
    """Notes on what may hold captions not as they are read: .json files, and .txt or .caption files beside no picture
    of their name, such as "a.png.txt". A single one of these is told where nothing else is, for it may be a note."""
    stems = {name.rpartition(".")[0] for name in names if name.lower().endswith(IMAGE_SUFFIXES)}
    sidecars = sorted(name for name in names if name.lower().endswith(SIDECAR_SUFFIXES))
    strays = [name for name in sidecars if name.rpartition(".")[0] not in stems]
    tables = [name for name in names if PurePosixPath(name).name.lower() in ("metadata.csv", "metadata.jsonl")]
    told = []
    if jsons := sorted(name for name in names if name.lower().endswith(".json")):
        text = f"{jsons[0]} lies there, but captions are read from metadata.csv or metadata.jsonl"
        if len(jsons) > 1:
            text = f"{len(jsons)} .json files lie there ({jsons[0]}), but captions are read from metadata.csv or .txt"
        told.append((text, "write what it says into metadata.csv, with the first line filename,prompt"))
    if len(strays) > 1:
        text = f"{len(strays)} caption files beside no picture of their name ({strays[0]})"
        told.append((text, "name each as its picture, a.txt for a.png, beside it"))
    elif strays == sidecars and strays and not (known or told or tables):
        text = f"{strays[0]} lies there, but is named as no picture: it is not read"
        told.append((text, "if it has the captions, write them into metadata.csv, with the first line filename,prompt"))
    return [Finding("other_table", "note", (), text, mend) for text, mend in told]
