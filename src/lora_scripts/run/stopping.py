"""How a run is stopped: after the step, everything saved, or at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lora_scripts.errors import Terminated
from lora_scripts.events import Event, Note, Progress, Sink


@contextmanager
def signals(sink: Sink) -> Iterator[Callable[[], int]]:
    """Gives the signal that came, 0 for none: the first Ctrl-C (or polite kill) ends the run after the step, saved; the
    second at once."""
    came = 0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: came
        return

    def on_signal(number: int, frame: Any) -> None:
        nonlocal came
        if came:
            raise ended_by(number)
        came = number
        sink(Note("\nstopping after this step (once more: at once, without saving)"))

    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(n, on_signal) for n in numbers]
    try:
        yield lambda: came
    finally:
        for n, old in zip(numbers, before, strict=True):
            signal.signal(n, old)


def stoppable(sink: Sink, stopped: Callable[[], int]) -> Sink:
    """The sink; it ends preparations where they stand when the run was stopped: what is encoded lies in the cache."""

    def tell(event: Event) -> None:
        sink(event)
        if isinstance(event, Progress) and stopped():
            raise ended_by(stopped())

    return tell


def ended_by(number: int) -> KeyboardInterrupt:
    """What a signal ends a run with."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
