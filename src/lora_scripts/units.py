"""Times, sizes and commands as a person reads them, and types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence

HALF = re.compile("[\ud800-\udfff]")
"""Half of a character (a lone surrogate): what Python makes of a byte that is not UTF-8 in what was typed, and what
JSON and YAML may write. No file, no tokenizer takes it."""


def duration(seconds: float) -> str:
    """In two units at most: "2 h 10 min", "3 min 20 s", "45 s"."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    if seconds < 599.5:
        minutes, rest = divmod(round(seconds), 60)
        return " ".join([f"{minutes} min"] * bool(minutes) + [f"{rest} s"] * bool(rest or not minutes))
    hours, minutes = divmod(round(seconds / 60), 60)
    return (f"{hours} h " if hours else "") + f"{minutes} min"


def size(count: float) -> str:
    """ "6.1 GB", "35 MB"; 1 GB is 2^30 bytes."""
    for unit, name in ((2**30, "GB"), (2**20, "MB")):
        if count >= unit:
            value = count / unit
            return f"{value:.0f} {name}" if value >= 99.5 else f"{value:.1f} {name}"
    return f"{count / 1024:.0f} kB"


def number_of(count: int, word: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` of them, and how many more there are: "a, b and 3 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def percent(share: float, digits: int = 0) -> str:
    """ "12 %" of 0.12, and never "-0 %"."""
    return f"{100 * share:z.{digits}f} %"


def span(values: Sequence[float]) -> str:
    """ "8", or "4 … 16" of values that rise; "?" of none."""
    ends = dict.fromkeys(f"{value:g}" for value in (*values[:1], *values[-1:]))
    return " … ".join(ends) or "?"


def typed(words: Sequence[str], *, windows: bool = os.name == "nt") -> str:
    """A command as it is typed: what holds a blank in quotes, on Windows in double ones: the command prompt knows no
    others."""
    return subprocess.list2cmdline(words) if windows else shlex.join(words)
