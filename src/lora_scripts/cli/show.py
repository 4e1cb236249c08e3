"""What a command gives, and what it tells meanwhile: to people as lines and a bar, to programs as JSON.

Results go to stdout, errors to stderr; with --json the result is one JSON document on stdout, and events and errors are
JSON lines on stderr. A pipe that nobody reads any more (`… | head -1`) ends the telling, not the work.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from lora_scripts.errors import UserError, UserErrors
from lora_scripts.events import Advised, Event, Measured, Note, Progress, Saved, Stepped, Table
from lora_scripts.units import duration

if TYPE_CHECKING:
    import rich.progress

STEPS = "step"
"""The row of the bar that counts the steps of a training, and stays when it is full."""
QUIET = 10.0
"""Seconds without a terminal until a line says how far work is; then so many again, or a twentieth of the time that it
has taken, whatever is more."""
JSON_EVERY = 0.5
"""Seconds between two JSON lines of one kind of progress; the first and the last are always told."""


# --- printing ---------------------------------------------------------------------------------------------------------


def say(text: str, *, error: bool = False) -> None:
    """Prints to stdout, or stderr, at once. It goes on silently where nobody reads any more."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as fault:
        if not is_closed_pipe(fault):
            raise
        mute(stream)


def is_closed_pipe(error: OSError) -> bool:
    """That nobody reads what was written; Windows says so with another number."""
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


def mute(stream: TextIO) -> None:
    """What is written to `stream` from now on goes nowhere, also what waits in its buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say_errors(error: UserError, *, json_lines: bool = False) -> None:
    """Every mistake as one line on stderr."""
    for one in error.errors if isinstance(error, UserErrors) else [error]:
        if json_lines:
            say(dumps({"event": "error", **_of_error(one)}), error=True)
        else:
            for line in str(one).splitlines():
                say(f"error: {line}", error=True)


def say_result(result: object, lines: Iterable[str], *, as_document: bool) -> None:
    """One JSON document, or the lines for people; nothing for a result that is None or has no words."""
    if as_document:
        say(dumps(result, indent=2))
    elif told := list(lines):
        say("\n".join(told))


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines with columns one under the other: the first `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
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
            return _of_error(value)
        case Mapping():
            return {str(as_json(key)): as_json(one) for key, one in value.items()}
        case list() | tuple():
            return [as_json(one) for one in value]
        case set() | frozenset():
            return sorted((as_json(one) for one in value), key=str)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _of_error(error: UserError) -> dict[str, object]:
    file = None if error.file is None else str(error.file)
    return {"message": error.message, "file": file, "line": error.line, "hint": error.hint}


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gauge.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._gauge.tell(event.what, event.done, event.total)
        elif isinstance(event, Stepped):
            text = f"loss {event.smoothed:.4f}  {event.samples_per_second:.1f} samples/s"
            self._gauge.tell(STEPS, event.step, event.total, text)
        else:
            line = self._words(event)
            line = usual_words(event) if line is None else line
            if line:
                say(line)


def usual_words(event: Event) -> str:
    """What a person is told of an event, "" for nothing."""
    match event:
        case Note(text):
            return text
        case Advised(_, text):
            return f"advice: {text}"
        case Saved(what, path):
            return f"{what}: {path}"
        case Measured(step, name, loss, lower):
            place = {"base": "base model", "init": "init_lora as it is"}.get(name, f"step {step}")
            than = "" if name == "base" else f", {abs(lower):.1%} {'lower' if lower >= 0 else 'higher'} than the base's"
            return f"held-out loss at {place}: {loss:.4f}{than.replace('%', ' %')}"
        case Table(title, rows):
            return "\n".join([title] * bool(title) + facts(rows))
    return ""


def facts(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Rows of (what, its value), the values one under the other and folded at the terminal's width."""
    name_width = max((len(name) for name, _ in rows), default=0)
    room = max(_width() - name_width - 1, 20)
    lines = []
    for name, value in rows:
        folded = [piece for line in value.splitlines() for piece in textwrap.wrap(line, room) or [""]] or [""]
        lines += [
            f"{label.ljust(name_width)} {piece}".rstrip()
            for label, piece in zip([name, *[""] * len(folded)], folded, strict=False)
        ]
    return lines


def _width() -> int:
    """Columns of the terminal; as many as one likes where there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # no terminal, or a stream without a number
        return 1000


class Bar:
    """A row for each kind of work on a terminal; a row that is full is taken away, but the steps of a training stay."""

    def __init__(self) -> None:
        self._progress: rich.progress.Progress | None = None
        self._rows: dict[str, rich.progress.TaskID] = {}

    def tell(self, what: str, done: int, total: int, text: str = "") -> None:
        """`done` of `total`, with a text behind the numbers."""
        progress = self._progress or self._start()
        if what not in self._rows:
            self._rows[what] = progress.add_task(what, total=total, completed=max(done - 1, 0), text=text)
        progress.update(self._rows[what], completed=done, total=total, text=text)
        if done >= total and what != STEPS:
            progress.remove_task(self._rows.pop(what))

    def close(self) -> None:
        """Gives the terminal back."""
        if self._progress is not None:
            self._progress.live.transient = STEPS not in self._rows
            self._progress.stop()
            self._progress = None

    def _start(self) -> rich.progress.Progress:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            # The mean of the last minute and not of the last seconds: one batch may take longer than that.
            speed_estimate_period=60.0,
        )  # fmt: skip
        self._progress.start()
        return self._progress


class Lines:
    """How far work is, without a terminal: a line now and then (see QUIET); of steps every twentieth and the last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun = dict[str, tuple[float, int]]()
        """Of each kind of work: when its first piece was told, and which that was."""
        self._told = dict[str, float]()

    def tell(self, what: str, done: int, total: int, text: str = "") -> None:
        """As `Bar.tell`."""
        now = self._clock()
        if done <= self._begun.setdefault(what, (now, done))[1]:
            self._begun[what] = now, done
            self._told.pop(what, None)
        start, first = self._begun[what]
        if what == STEPS:
            due = done % max(1, total // 20) == 0 or done >= total
        else:
            last = self._told.get(what, start)
            due = now - last >= max(QUIET, (now - start) / 20) or (done >= total and what in self._told)
        if not due:
            return
        self._told[what] = now
        rate = (done - first) / max(now - start, 1e-9)
        parts = [f"{what} {done}/{total}", text or (f"{rate:.1f}/s" if rate >= 0.1 else "")]
        if rate > 0 and done < total:
            parts.append(f"{duration((total - done) / rate)} left")
        say("  ".join(part for part in parts if part))

    def close(self) -> None:
        """There is nothing to give back."""
