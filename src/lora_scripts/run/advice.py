"""Advice while a run goes on: each kind is told once, when the measurements first show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_scripts.train.advise import Advice, Facts, advise

if TYPE_CHECKING:
    from lora_scripts.run.story import Run


def facts_of(run: Run) -> Facts:
    """What the words need to know."""
    c = run.config
    return Facts(c.learning_rate, run.total, run.feed.steps_per_epoch, c.warmup_steps, run.folder.name)


def new(run: Run) -> list[Advice]:
    """What the latest measurement adds to those before."""
    taken, facts = run.held.evaluations, facts_of(run)
    told = {one.kind for one in advise(taken[:-1], facts)}
    return [one for one in advise(taken, facts) if one.kind not in told]


def tell_new(run: Run) -> None:
    """Prints it."""
    for one in new(run):
        print(f"advice: {one}", flush=True)
