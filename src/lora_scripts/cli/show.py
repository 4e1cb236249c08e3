"""What a command gives, and what it tells meanwhile: to people as lines and a bar, to programs as JSON.

Results go to stdout, errors to stderr; with --json the result is one JSON document on stdout, and events and errors are
JSON lines on stderr.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath

from lora_scripts.chinese.terminal import AsItIs, told, told_error
from lora_scripts.chinese.widths import folded, ljust, rjust, width
from lora_scripts.cli.gauge import STEPS, Bar, Lines
from lora_scripts.cli.printing import say, say_whole
from lora_scripts.errors import UserError
from lora_scripts.events import Advised, Event, Measured, Note, Progress, Saved, Stepped, Table
from lora_scripts.units import percent

JSON_EVERY = 0.5
"""Seconds between two JSON lines of one kind of progress; the first and the last are always told."""


def say_errors(error: UserError, *, json_lines: bool = False) -> None:
    """Every mistake as one line on stderr."""
    for one in error.errors:
        if json_lines:
            say(dumps({"event": "error", **one.as_dict()}), error=True)
        else:
            for line in str(told_error(one)).splitlines():
                say(f"{told('error')}: {line}", error=True)


def say_result(result: object, lines: Iterable[str], *, as_document: bool) -> None:
    """One JSON document, or the lines for people; nothing for a result that is None or has no words."""
    if as_document:
        say_whole(dumps(result, indent=2))
    elif text := "\n".join(map(told, lines)):
        say_whole(text)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines with columns one under the other: the first `left` to the left, the others to the right."""
    table = [[told(cell) for cell in row] for row in (head, *rows)]
    widths = [max(width(row[i]) for row in table) for i in range(len(head))]
    lines: list[str] = []
    for row in table:
        cells = [
            ljust(cell, wide) if number < left else rjust(cell, wide)
            for number, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(AsItIs("  " + "  ".join(cells).rstrip()))
    return lines


# --- JSON -------------------------------------------------------------------------------------------------------------


def as_json(value: object) -> object:
    """A result or an event as dicts, lists, texts, numbers and null: dataclasses by their fields, paths as texts, enums
    by their values. A number that is none (NaN, infinite) becomes null, for JSON has no word for it.

    TypeError for what a result must not hold, such as a tensor.
    """
    match value:
        case None | bool() | str():
            return value.value if isinstance(value, Enum) else value
        case Enum():
            return as_json(value.value)
        case int() | float():
            return value if math.isfinite(value) else None
        case PurePath():
            return str(value)
        case UserError():
            return value.as_dict()
        case Mapping():
            return {str(as_json(key)): as_json(one) for key, one in value.items()}
        case list() | tuple():
            return [as_json(one) for one in value]
        case set() | frozenset():
            return sorted((as_json(one) for one in value), key=str)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def dumps(value: object, *, indent: int | None = None) -> str:
    """`value` as JSON; letters beyond ASCII as they are where the terminal or file takes them."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(as_json(value), ensure_ascii=not utf8, indent=indent)


# --- events -----------------------------------------------------------------------------------------------------------


class JsonLines:
    """The sink of --json: every event as one line on stderr, {"event": "saved", …}."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._told = clock, dict[str, float]()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.done < event.total:
            now = self._clock()
            if now - self._told.get(event.what, -math.inf) < JSON_EVERY:
                return
            self._told[event.what] = now
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
        fields = as_json(event)
        assert isinstance(fields, dict)
        say(dumps({"event": name, **fields}), error=True)


class People:
    """The sink of people: lines on stdout, and how far work is as a bar on a terminal, or as a line now and then.

    `words` gives the line of an event where a command has its own: None for the usual one, "" for none at all.
    """

    def __init__(
        self, words: Callable[[Event], str | None] = lambda event: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._words = words
        self._gauge: Bar | Lines = Bar() if sys.stdout.isatty() else Lines(clock)

    def __enter__(self) -> People:
        return self

    def __exit__(self, *_: object) -> None:
        self._gauge.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._gauge.tell(event.what, event.done, event.total)
        elif isinstance(event, Stepped):
            text = told(f"loss {event.smoothed:.4f}  {event.samples_per_second:.1f} {event.samples}/s")
            self._gauge.tell(STEPS, event.step, event.total, text)
        else:
            line = self._words(event)
            line = usual_words(event) if line is None else line
            if line:
                say(told(line))


def usual_words(event: Event) -> str:
    """What a person is told of an event, "" for nothing."""
    match event:
        case Note(text):
            return text
        case Advised(_, text):
            return f"advice: {text}"
        case Saved(what, path):
            return f"{what}: {path}"
        case Measured(step, name, loss, lower, perplexity):
            place = {"base": "base model", "init": "init_lora as it is"}.get(name, f"step {step}")
            less = f"{percent(abs(lower), 1)} {'lower' if lower >= 0 else 'higher'}"
            than = "" if name == "base" else f", {less} than the base's"
            per_token = "" if perplexity is None else f" (perplexity {perplexity:.4g})"
            return f"held-out loss at {place}: {loss:.4f}{per_token}{than}"
        case Table(title, rows):
            return AsItIs("\n".join([told(title)] * bool(title) + [*facts(rows)]))
    return ""


def facts(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Rows of (what, its value), the values one under the other and folded at the terminal's width."""
    rows = [(told(name), told(value)) for name, value in rows]
    name_width = max((width(name) for name, _ in rows), default=0)
    room = max(_width() - name_width - 1, 20)
    lines: list[str] = []
    for name, value in rows:
        pieces = [piece for line in value.splitlines() for piece in folded(line, room)] or [""]
        lines += [
            AsItIs(f"{ljust(label, name_width)} {piece}".rstrip())
            for label, piece in zip([name, *[""] * len(pieces)], pieces, strict=False)
        ]
    return lines


def _width() -> int:
    """Columns of the terminal; as many as one likes where there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # no terminal, or a stream without a number
        return 1000
