"""What is wrong with a data set, in words: `check` finds it, `report` shows it."""

from __future__ import annotations

from dataclasses import dataclass
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
