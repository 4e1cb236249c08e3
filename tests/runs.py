"""Runs that are stopped on the way, and calls that complain."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lora_scripts.cli import show
from lora_scripts.cli import train as words
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.events import Event, Sink, Stepped
from lora_scripts.run import story
from lora_scripts.run.configs import load_config
from lora_scripts.run.parts import Parts
from lora_scripts.run.preflight import preflight


def interrupting(step: int, sink: Sink, number: signal.Signals = signal.SIGINT) -> Sink:
    """The sink; a real signal, Ctrl-C's if no other is named, comes when `step` is done."""

    def tell(event: Event) -> None:
        sink(event)
        if isinstance(event, Stepped) and event.step == step:
            signal.raise_signal(number)

    return tell


def stopped(config: Path, step: int, *overrides: str, resume: bool = False) -> Parts:
    """The parts of a run of the config that was interrupted in `step`."""
    seen: list[Parts] = []
    train_steps: Callable[..., bool] = story.train_steps

    def watched(parts: Parts, *rest: Any) -> bool:
        seen.append(parts)
        return train_steps(parts, *rest)

    loaded = load_config(config, overrides)
    ready = preflight(loaded, resume=resume)
    with mock.patch.object(story, "train_steps", watched), show.People(words.event_words) as people:
        try:
            story.train(loaded, ready.folder, ready.samples, resume=resume, sink=interrupting(step, people))
        except KeyboardInterrupt:
            assert seen[0].state.step == step
            return seen[0]
    raise AssertionError("it was not stopped")


def faults(call: Any) -> str:
    """What a call complains of, a line each."""
    with pytest.raises((UserError, UserErrors)) as raised:
        call()
    error = raised.value
    return "\n".join(str(one) for one in (error.errors if isinstance(error, UserErrors) else [error]))


def only_the_file(parts: Parts, measuring: Any, saver: story.PictureSaver, board: Any, sink: Any) -> story.TrainResult:
    """In place of `story.finish`."""
    saver.write(parts.folder.final, "LoRA")
    f = parts.folder
    return story.TrainResult(
        f.name, f.final, "", f.path / "report.html", parts.state.step, 0.0, None, measuring.warning, "", {}
    )
