"""What the terminal, and comments of files, tell people in their language. The one way of every line there; JSON never
comes by.

An error's message and its mend are looked up by themselves, and so are the parts of a line that is put together of
several. A text without Chinese stays English as a whole.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache

from lora_scripts.chinese.catalogue import translated
from lora_scripts.chinese.spoken import language
from lora_scripts.errors import UserError

_LABELS = frozenset({"error", "warning", "note", "advice", "hint", "before that"})
"""What a line may begin with, whatever follows."""
_PROSE = re.compile("[a-z]{2,} [a-z]{2,}")
"""English. Names of files and keys are none, and stay in the midst of Chinese."""

_LONGEST, _PARTS = 1000, 12
"""Letters of a line, and colons and semicolons in it: one with more holds what a person wrote, and stays as it is."""
_PATH = re.compile(r"\S*[/\\.]\S*")


class AsItIs(str):
    """A line that is shown as it is: of a table whose cells are told already, or what a person or a model wrote."""


def told(text: str) -> str:
    """A text, of one line or several, as a person is told it. English stays what it is, to the byte."""
    return _in_chinese(text) if in_chinese() else text


def noted(*parts: str) -> str:
    """A comment in a file that people open, of one text or several, as they are told it: files are in UTF-8, whatever
    the terminal takes."""
    if language() == "en":
        return ", ".join(parts)
    return "，".join(map(_in_chinese, parts))


def _in_chinese(text: str) -> str:
    if isinstance(text, AsItIs):
        return text
    if "\n" in text and translated(text) is None:
        return "\n".join(map(_line, text.split("\n")))
    return _line(text)


def told_error(error: UserError) -> UserError:
    """One mistake as a person is told it, with its file and line."""
    hint = error.hint and told(error.hint)
    return UserError(told(error.message), file=error.file, line=error.line, hint=hint)


def in_chinese() -> bool:
    """Whether the person reads Chinese, and the terminal or file that is written to takes it."""
    if language() == "en":
        return False
    stream = getattr(
        sys.stdout, "rich_proxied_file", sys.stdout
    )  # under a bar stdout is rich's, which names no encoding
    try:
        "中文".encode(stream.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _line(text: str) -> str:
    bare = text.strip(" ")
    if not bare or len(bare) > _LONGEST or bare.count(": ") + bare.count("; ") > _PARTS:
        return text
    return text.replace(bare, _known(bare) or bare)


@lru_cache(1000)
def _known(text: str) -> str | None:
    """A text in Chinese; or, where the whole is not known, its parts: what stands before a colon, as of a label, a key
    or a file, and mends behind semicolons. None unless every part is known, or a name that stays as it is."""
    head, colon, rest = text.partition(": ")
    if head in _LABELS and (inner := _known(rest)):
        return f"{translated(head)}：{inner}"
    if (found := translated(text, apart=True)) is not None:
        return found
    parts = text.split("; ")
    for many in range(len(parts) - 1, 0, -1):  # before a hole at the end of one takes in the next
        first, second = _known("; ".join(parts[:many])), _known("; ".join(parts[many:]))
        if first and second:
            return f"{first}；{second}"
    if (found := translated(text)) is not None:
        return found
    if colon and (inner := _known(rest)):
        if label := " " in head and translated(head):  # a single word is a key, or a file
            return f"{label}：{inner}"
        return None if _PROSE.search(_PATH.sub("", head)) else f"{head}: {inner}"
    return None
