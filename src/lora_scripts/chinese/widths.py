"""Texts in columns: a Chinese character takes two of the terminal's."""

from __future__ import annotations

import textwrap
from unicodedata import east_asian_width

_NEVER_LAST = "（《“‘"
_NEVER_FIRST = "，。；：、！？）》”’…"
"""Signs that no line begins with; above, those that none ends with."""


def width(text: str) -> int:
    """How many columns of a terminal it takes."""
    return len(text) + sum(map(_is_wide, text))


def ljust(text: str, columns: int) -> str:
    """As str.ljust, in columns."""
    return text + " " * (columns - width(text))


def rjust(text: str, columns: int) -> str:
    """As str.rjust, in columns."""
    return " " * (columns - width(text)) + text


def folded(text: str, columns: int) -> list[str]:
    """Lines of at most so many columns. English goes by words; Chinese may also be parted between any two characters,
    but no line begins with a comma or the like."""
    if not any(map(_is_wide, text)):
        return textwrap.wrap(text, columns) or [""]
    lines, line = [], ""
    for piece in _pieces(text):
        if line and width(line + piece.rstrip()) > columns:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()]


def _pieces(text: str) -> list[str]:
    """What is never parted: words with the blank behind them, and single wide characters with the signs that follow."""
    pieces = [""]
    for sign in text:
        before = pieces[-1][-1:]
        parted = before == " " or _is_wide(sign) or _is_wide(before or "a")
        if before and parted and sign not in " " + _NEVER_FIRST and before not in _NEVER_LAST:
            pieces.append(sign)
        else:
            pieces[-1] += sign
    return pieces


def _is_wide(sign: str) -> bool:
    return east_asian_width(sign) in "WF"
