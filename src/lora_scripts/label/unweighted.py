"""A prompt as a caption: the words that say what is drawn, without what says how much. Pure."""

from __future__ import annotations

import re

from lora_scripts.families.clip.prompts import BREAK, weighted

MOST = 5000
"""Letters of a prompt that are read; text encoders read 300 to 2000 or so."""

_CALLED = re.compile(r"<(?:lora|lyco|hypernet)\b[^<>]*>", re.IGNORECASE)
_INNERMOST = re.compile(r"(?<!\\)(?:\[((?:\\.|[^\[\]{}\\])*)\]|\{((?:\\.|[^\[\]{}\\])*)\})", re.DOTALL)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_WHEN = re.compile(rf"\s*{_NUMBER}\s*")
_WEIGHT = re.compile(rf"\s*:\s*{_NUMBER}\s*$")
_AND = re.compile(r"(?<![A-Z]{2})(?<!\s)\s+AND\b(?!\s+[A-Z]{2})")
"""Not in words that are drawn: a sign that says SALT AND PEPPER."""
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufeff]")
_LINES = ((r"(?<=[，、。；：！？])\s*\n\s*", ""), (r"(?<=[,.;:!?])\s*\n\s*", " "), (r"\s*\n\s*", ", "))
"""What a line break becomes."""
_COMMAS = re.compile(r"\s*([,，、])(?:\s*[,，、])*")
_DEEPEST = 20


def caption_of(prompt: str) -> str:
    r"""The words of a prompt on one line; "" where it has none.

    Left out: <lora:name:0.8>, the signs and numbers of weights ((a), [a], {a}, (a:1.2)), line breaks, doubled commas.
    "\(" is a bracket. BREAK and AND are commas; of [a:b:0.5], which draws a and then b, b stays, of [a::0.5] a, and of
    [a|b] both.
    """
    text = _cut(_NO_TEXT.sub(" ", prompt.encode("utf-8", "replace").decode()))  # JSON may hold half a letter
    text = _CALLED.sub(" ", text)
    for _ in range(_DEEPEST):
        text, found = _INNERMOST.subn(_without_brackets, text)
        if not found:
            break
    first, *more = _AND.split(text)
    if more:
        text = ", ".join(_WEIGHT.sub("", part) for part in (first, *more))
    text = "".join(", " if (piece, weight) == (BREAK, -1.0) else piece for piece, weight in weighted(text))
    text = text.strip()
    for pattern, between in _LINES:
        text = re.sub(pattern, between, text)
    return " ".join(_COMMAS.sub(r"\1", text).split()).strip(" ,，、")


def _cut(text: str) -> str:
    """Up to a comma or a blank where it is too long."""
    if len(text) <= MOST:
        return text
    return text[:MOST].rpartition(",")[0] or text[:MOST].rpartition(" ")[0] or text[:MOST]


def _without_brackets(match: re.Match[str]) -> str:
    inner = match[2] if match[1] is None else match[1]
    *drawn, when = _split(inner, ":")
    if match[1] is not None and 1 <= len(drawn) <= 2 and _WHEN.fullmatch(when):
        return drawn[-1] if drawn[-1].strip() else drawn[0]
    return ", ".join(part for part in _split(inner, "|") if part.strip())


def _split(text: str, mark: str) -> list[str]:
    """Cut at a mark that does not stand in round brackets."""
    parts, depth = [""], 0
    for piece in re.findall(r"\\.|.", text, re.DOTALL):
        depth += (piece == "(") - (piece == ")")
        if piece == mark and depth <= 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts
