"""Which learning rate is tried next, and what the trials say. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.train.evidence import FEWEST, Evaluation, Interval, bootstrap, less, mean


@dataclass(frozen=True)
class Trial:
    """A short run with one value of the key."""

    value: str
    """As it is written in a config."""
    folder: Path
    base: Evaluation | None = None
    """The base's losses on the held-out pictures,"""
    best: Evaluation | None = None
    """and the lowest that the run had; None where its loss was no number in the end."""


@dataclass(frozen=True)
class Standing:
    """How a trial stands beside the best."""

    trial: Trial
    higher: Interval | None
    """How much higher its loss is, picture by picture; None where it is no number."""
    alike: bool
    """That the evidence does not tell it from the best."""


def next_power(tried: Mapping[int, float]) -> int | None:
    """Of rates `first * 2 ** power` the next to be tried; None once the lowest loss has a higher one on either side.

    `tried`: power -> loss, infinite where there is none. It goes up first: usual rates are careful ones.
    """
    if not tried:
        return 0
    lowest = min(tried, key=lambda power: (tried[power], power))
    return next((power for power in (lowest + 1, lowest - 1) if power not in tried), None)


def standings(trials: Sequence[Trial], seed: int = 0) -> list[Standing]:
    """All of them, the lowest loss first; those without one last.

    What counts is how far each is below its base, which a run of another length may measure at other noise levels.
    """
    known = [(less(one.best.held, one.base.held), one) for one in trials if one.best and one.base]
    known.sort(key=lambda row: mean(row[0]))
    told: list[Standing] = []
    for own, trial in known:
        more = bootstrap(less(own, known[0][0]), seed) if told else Interval(0.0, 0.0, 0.0)
        told.append(Standing(trial, more, len(own) < FEWEST or more.low <= 0))
    return [*told, *(Standing(one, None, False) for one in trials if not (one.best and one.base))]
