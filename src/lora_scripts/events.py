"""What long work tells while it goes on. A sink takes the events; `cli` words them, another program may draw them.

Nothing below `cli` prints. An event is plain data: numbers, texts and paths, never a tensor or an open file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` pieces of one kind of work."""

    what: str
    """Of what, in the plural: "pictures", "captions", "tensors"."""
    done: int
    total: int


@dataclass(frozen=True)
class Note(Event):
    """A sentence that a person should read: nothing is wrong, or not yet."""

    text: str


@dataclass(frozen=True)
class Table(Event):
    """Rows of (what, its value): what a run is going to do."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Advised(Event):
    """Something to change, and why: told once for each kind."""

    kind: str
    text: str


@dataclass(frozen=True)
class Stepped(Event):
    """One step of a training."""

    step: int
    """1 … total"""
    total: int
    epoch: int
    loss: float
    smoothed: float
    learning_rate: float
    grad_norm: float
    samples_per_second: float
    seconds: float
    """Of the step."""
    samples: str = "samples"
    """What is counted: of texts the tokens that are learned."""


@dataclass(frozen=True)
class Measured(Event):
    """A held-out loss."""

    step: int
    name: str
    """"base", "init", or "" of a step of the run"""
    loss: float
    lower: float
    """How much lower than the base's, as a share of it; below 0: higher."""
    perplexity: float | None = None
    """e to the loss, of a language model."""


@dataclass(frozen=True)
class Saved(Event):
    """A file that is written, whole and on the disk."""

    what: str
    """"LoRA", "state", "preview", "report", "best LoRA" …"""
    path: Path
    step: int | None = None


Sink = Callable[[Event], None]
"""Takes events as they come. It may raise KeyboardInterrupt to end the work where it stands."""


def ignore(event: Event) -> None:
    """The sink of those who do not want to know."""


def counting(sink: Sink, what: str) -> Callable[[int, int], None]:
    """Takes (done, total) and tells the sink of it: for work that knows nothing of events."""
    return lambda done, total: sink(Progress(what, done, total))
