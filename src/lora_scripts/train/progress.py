"""What is kept of a run's numbers: the smoothed loss, and TensorBoard's curves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.events import Note, Sink

if TYPE_CHECKING:
    from PIL import Image

SMOOTHING = 0.98
"""Factor of the moving average of the loss."""


class Smoothed:
    """The moving average of the loss, not pulled towards zero at its start (Kingma & Ba 2015, section 3)."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self.average, self.weight = 0.0, 0.0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float:
        return self.average / self.weight if self.weight else float("nan")


class Board:
    """TensorBoard's event file under `folder`; a run hides what an interrupted one wrote there beyond the step that
    it begins at.

    Curves are the least of a run's files: where one cannot be written, that is told once, and nothing more is tried.
    torch's SummaryWriter is not used for that reason: its thread prints a traceback, and raises in some later step.
    """

    def __init__(self, folder: Path, step: int, sink: Sink) -> None:
        # Not in `_write`: without the package a run does not begin.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._summary, self._sink = Event, summary, sink
        self._records: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"  # TensorBoard reads them in this order
            self._records = RecordWriter((folder / name).open("xb"))
        except OSError as error:
            self._give_up(error)
        self._write(Event(file_version="brain.Event:2"))
        first = step + 1 if step else 0  # before the first step something is measured and drawn, too
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        self._flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(self._event(step=step, summary=self._summary.scalar(name, value)))
        self._flush()

    def picture(self, step: int, name: str, image: Image.Image, prompt: str) -> None:
        """With the prompt as its title."""
        import numpy as np

        summary = self._summary.image(name, np.asarray(image), dataformats="HWC")
        told = summary.value[0].metadata
        told.display_name, told.summary_description = f"{name}: {prompt}", prompt
        self._write(self._event(step=step, summary=summary))
        self._flush()

    def close(self) -> None:
        if self._records is not None:
            try:
                self._records.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, event: Any) -> None:
        if self._records is not None:
            event.wall_time = time.time()
            try:
                self._records.write(event.SerializeToString())
            except OSError as error:
                self._give_up(error)

    def _flush(self) -> None:
        if self._records is not None:
            try:
                self._records.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        records, self._records = self._records, None
        if records is not None:
            with suppress(OSError):  # what is still in its buffer cannot be written either
                records.close()
        reason = error.strerror or str(error)
        self._sink(Note(f"note: TensorBoard's curves cannot be written ({reason}); the training goes on without them"))
