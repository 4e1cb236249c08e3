"""How far work is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_scripts.chinese.terminal import told
from lora_scripts.cli.printing import say
from lora_scripts.units import duration

if TYPE_CHECKING:
    import rich.progress

STEPS = "step"
"""The row of the bar that counts the steps of a training, and stays when it is full."""
QUIET = 10.0
"""Seconds without a terminal until a line says how far work is; then so many again, or a twentieth of the time that it
has taken, whatever is more."""


class Bar:
    """A row for each kind of work on a terminal; a row that is full is taken away, but the steps of a training stay."""

    def __init__(self) -> None:
        self._progress: rich.progress.Progress | None = None
        self._rows: dict[str, rich.progress.TaskID] = {}

    def tell(self, what: str, done: int, total: int, text: str = "") -> None:
        """`done` of `total`, with a text behind the numbers."""
        progress = self._progress or self._start()
        if what not in self._rows:
            self._rows[what] = progress.add_task(told(what), total=total, completed=max(done - 1, 0), text=text)
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
            TimeElapsedColumn(), TextColumn(told("left")), TimeRemainingColumn(),
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
        parts = [f"{told(what)} {done}/{total}", text or (f"{rate:.1f}/s" if rate >= 0.1 else "")]
        if rate > 0 and done < total:
            parts.append(told(f"{duration((total - done) / rate)} left"))
        say("  ".join(part for part in parts if part))

    def close(self) -> None:
        """There is nothing to give back."""
