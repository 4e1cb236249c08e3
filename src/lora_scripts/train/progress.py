"""What a person sees while it runs: the table before, the bar, TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from PIL import Image

    from lora_scripts.train.loop import StepFacts

SMOOTHING = 0.98
"""Factor of the moving average of the loss."""


def show_plan(rows: Sequence[tuple[str, str]]) -> None:
    """The table before the first step."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


class Bar:
    """A progress bar on a terminal, a line now and then in a log file."""

    def __init__(self, total: int, done: int) -> None:
        self.terminal = sys.stdout.isatty()
        self.total, self.every, self.average, self.weight = total, max(1, total // 20), 0.0, 0.0
        columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        self.progress = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.task = self.progress.add_task("train", total=total, completed=done, told="")

    def __enter__(self) -> Bar:
        if self.terminal:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            self.progress.stop()

    def warm(self, losses: Sequence[float]) -> None:
        """Takes up the smoothed loss of a resumed run."""
        for loss in losses:
            self._add(loss)

    def _add(self, loss: float) -> None:
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def smoothed(self) -> float:
        return self.average / self.weight

    def tell(self, facts: StepFacts, rate: float) -> None:
        """`rate`: images per second."""
        self._add(facts.loss)
        told = f"loss {self.smoothed:.4f}  {rate:.1f} images/s"
        if self.terminal:
            self.progress.update(self.task, completed=facts.step, told=told)
        elif facts.step % self.every == 0 or facts.step == self.total:
            left = (self.total - facts.step) * facts.images / rate
            print(f"step {facts.step}/{self.total}  {told}  {left:.0f} s left", flush=True)


class Board:
    """TensorBoard's event files under `folder`; a resumed run hides what an interrupted one wrote beyond its step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        import numpy as np

        self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Counter:
    """One line that counts up while things are prepared: "pictures 12/50"."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.terminal:
            print(f"\rencoding {what} {done}/{total} ", end="\n" if done == total else "", flush=True)
        elif done == total:
            print(f"encoded {total} {what}", flush=True)
