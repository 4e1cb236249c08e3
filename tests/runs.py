"""Runs that stop themselves."""

from __future__ import annotations

import signal
from pathlib import Path

from lora_scripts.config.load import load_config
from lora_scripts.run.preflight import check
from lora_scripts.run.story import Run
from lora_scripts.train.loop import StepFacts


class Stopping(Run):
    """Is sent a real Ctrl-C (SIGINT) in its step `stop_at`."""

    stop_at = 0

    def _told(self, facts: StepFacts) -> None:
        super()._told(facts)
        if facts.step == self.stop_at:
            signal.raise_signal(signal.SIGINT)


def stopped(config: Path, step: int, *overrides: str, resume: bool = False) -> Run:
    """A run of the config that was interrupted in `step`."""
    loaded = load_config(config, overrides)
    run = Stopping(loaded, *check(loaded, resume=resume), resume=resume)
    run.stop_at = step
    try:
        run.start()
    except KeyboardInterrupt:
        assert run.state.step == step
        return run
    raise AssertionError("it was not stopped")
