"""How far labelling is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY = 30.0
"""Seconds between two lines of a log file; less often than every twentieth of the work is enough."""


class Bar:
    """Counts pictures up to `total`, with the time that is left."""

    def __init__(self, total: int) -> None:
        self.terminal, self.total, self.told = sys.stdout.isatty(), total, 0
        self.start = self.last = time.monotonic()
        columns = (TextColumn("labelling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
        # The mean of the last minute and not of the last seconds: one batch may take longer than that.
        self.progress = Progress(*columns, TimeRemainingColumn(), speed_estimate_period=60.0)
        self.task = self.progress.add_task("label", total=total)

    def __enter__(self) -> Bar:
        if self.terminal:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            self.progress.stop()

    def tell(self, done: int) -> None:
        """`done` pictures are through."""
        if self.terminal:
            self.progress.update(self.task, completed=done)
            return
        now = time.monotonic()
        if done == self.total or (now - self.last >= _EVERY and done - self.told >= self.total / 20):
            rate = done / max(now - self.start, 1e-9)
            left = "" if done == self.total else f"  {(self.total - done) / rate:.0f} s left"
            print(f"labelled {done}/{self.total}  {rate:.1f} pictures/s{left}", flush=True)
            self.last, self.told = now, done
