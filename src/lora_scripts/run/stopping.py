"""How a run is stopped: after the step, everything saved, or at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lora_scripts.errors import Terminated
from lora_scripts.events import Event, Note, Progress, Sink

Phase = Literal["preparing", "steps", "report"]
SAVED = "stopped at step {step}; everything is saved, go on with {again}"
"""What a run says that ended after a step."""


class Stopped:
    """Whether a signal came, and what it ends: asked by calling, it gives the signal's number, 0 for none."""

    def __init__(self, sink: Sink, *, resume: bool, again: str) -> None:
        self.number = 0
        self.phase: Phase = "preparing"
        self.again = again
        """How the person goes on: "--resume", or "the same command"."""
        self._sink, self._resume = sink, resume

    def __call__(self) -> int:
        return self.number

    def begin(self, phase: Phase) -> None:
        """The next part of the run. Raises KeyboardInterrupt where no step was to be taken any more."""
        self.phase = phase
        if self.number and phase == "steps":
            self.phase = "preparing"
            raise ended_by(self.number)
        if self.number:
            self.tell()

    def tell(self) -> None:
        """What will happen now."""
        before = "before the next step" if self._resume else "before the first step"
        words = {
            "preparing": f"stopping {before} (once more: at once)",
            "steps": "stopping after this step (once more: at once, without saving)",
            "report": "all steps are done and saved, the report is being made "
            f"(once more: leaves it out, {self.again} makes it)",
        }
        self._sink(Note("\n" + words[self.phase]))

    @property
    def left(self) -> str:
        """What is left, when it ended outside of the steps; "" where nothing is to be said."""
        again = " without --resume" if self.again == "--resume" else ""
        words = {
            "preparing": f"no step was added; go on with {self.again}"
            if self._resume
            else f"nothing was trained yet; start again{again}",
            "report": f"the report is left out; {self.again} makes it",
        }
        return words.get(self.phase, "") if self.number else ""


@contextmanager
def signals(sink: Sink, *, resume: bool = False, again: str = "--resume") -> Iterator[Stopped]:
    """Tells whether a signal came: the first Ctrl-C (or polite kill) ends the run after the step, saved; the second at
    once. While the report is made the first ends nothing."""
    stopped = Stopped(sink, resume=resume, again=again)
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def on_signal(number: int, frame: Any) -> None:
        if stopped.number:
            raise ended_by(number)
        stopped.number = number
        stopped.tell()

    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(n, on_signal) for n in numbers]
    try:
        yield stopped
    except KeyboardInterrupt as stop:
        if stopped.left and not str(stop):
            stop.args = (stopped.left,)
        raise
    finally:
        for n, old in zip(numbers, before, strict=True):
            signal.signal(n, old)


def stoppable(sink: Sink, stopped: Stopped) -> Sink:
    """The sink; it ends preparations where they stand when the run was stopped: what is encoded lies in the cache."""

    def tell(event: Event) -> None:
        sink(event)
        if isinstance(event, Progress) and stopped.phase == "preparing" and stopped():
            raise ended_by(stopped())

    return tell


def ended_by(number: int, *words: str) -> KeyboardInterrupt:
    """What a signal ends a run with; `words`: what the person is told in the end, in place of "stopped"."""
    return Terminated(*words) if number == signal.SIGTERM else KeyboardInterrupt(*words)
