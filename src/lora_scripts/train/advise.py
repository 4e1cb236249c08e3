"""What a run's measurements advise, in words. Pure functions, made to be silent on a healthy run.

The loss of a single step scatters with the noise level that it drew, so nothing here looks at it: all tests are on
`evidence.Evaluation`s, the same pictures at the same noise, whose differences are paired. Each test needs both a
difference that the bootstrap over pictures tells from zero and one that is large enough to matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lora_scripts.train.evidence import FEWEST, Evaluation, Interval, best_of, bootstrap, less, mean

RISE = 0.02
"""Of the loss before training: a rise that counts."""
SWING = 0.015
"""Of the loss before training: an up or down from one measurement to the next that counts as a swing."""
STILL = 0.015
"""Of the loss before training: what a run has to gain by half of its steps."""
WORSE = 0.01
"""Of the loss before training: how much the held-out pictures lose while a run memorises."""


GAIN = 0.15
"""Of the loss: what half of the pictures must have gained before single ones can be said not to fit."""
STRAY = 3.0
"""Robust deviations by which a picture that does not fit lies below the others (Iglewicz & Hoaglin 1993)."""
LEAST = 12
"""Pictures of a set in which strays are looked for."""


@dataclass(frozen=True)
class Facts:
    """What the words need to know of the run."""

    learning_rate: float
    total: int
    """Optimizer steps."""
    steps_per_epoch: int
    warmup: int
    name: str
    """Of the LoRA."""
    samples: str = "pictures"
    """What is trained, in the plural."""
    suffix: str = ".safetensors"
    """Of the LoRA's files; "" where they are folders."""


@dataclass(frozen=True)
class Advice:
    """One thing to say."""

    kind: str
    """rises, oscillates, does_not_fall, memorises, never_fit"""
    step: int
    """Where it shows."""
    message: str
    change: str
    """A line of the config to try."""
    names: tuple[str, ...] = ()
    """Pictures that it is about."""

    def __str__(self) -> str:
        return f"step {self.step}: {self.message}; try {self.change}"


def advise(evaluations: Sequence[Evaluation], facts: Facts) -> list[Advice]:
    """Everything that the measurements show so far; nothing for a healthy run, or for too few measurements."""
    starts = [e for e in evaluations if e.name]
    points = [e for e in evaluations if not e.name]
    if not starts or not points or len(points[0].train) < FEWEST:
        return []
    start = starts[-1]
    found = _rises(start, points, facts) or _oscillates(start, points, facts) or _still(start, points, facts)
    return [advice for advice in (found, _memorises(start, points, facts)) if advice is not None]


def _rises(start: Evaluation, points: Sequence[Evaluation], facts: Facts) -> Advice | None:
    """The training pictures are worse than before the run, at two measurements or at the last step."""
    floor, worse = mean(start.train), 0
    for point in points:
        rise = _of(less(point.train, start.train), floor)
        worse = worse + 1 if (rise.low > 0 and rise.mean > RISE) or not math.isfinite(rise.mean) else 0
        if worse == 2 or (worse and point.step == facts.total):
            share = "no number" if not math.isfinite(rise.mean) else f"{_percent(rise.mean)} above"
            by = 10 if not rise.mean < 0.1 else 3
            return Advice(
                "rises",
                point.step,
                f"the loss rises: on training {facts.samples} it is {share} what it was before the run, so the "
                "learning rate is too high",
                f"learning_rate: {facts.learning_rate / by:.2g}",
            )
    return None


def _oscillates(start: Evaluation, points: Sequence[Evaluation], facts: Facts) -> Advice | None:
    """The training pictures' loss goes up twice, with a way down between."""
    floor, ups, down = mean(start.train), 0, True
    for before, after in zip([start, *points], points, strict=False):
        step = _of(less(after.train, before.train), floor)
        if step.low > 0 and step.mean > SWING and down:
            ups, down = ups + 1, False
        elif step.high < 0 and step.mean < -SWING:
            down = True
        if ups == 2:
            return Advice(
                "oscillates",
                after.step,
                f"the loss goes up and down: on the same training {facts.samples} it rose twice, so the learning rate "
                "is too high",
                f"learning_rate: {facts.learning_rate / 3:.2g}",
            )
    return None


def _still(start: Evaluation, points: Sequence[Evaluation], facts: Facts) -> Advice | None:
    """Half of the run has changed nothing."""
    late = [p for p in points if p.step >= max(facts.total / 2, 2 * facts.warmup)]
    if len(points) < 3 or not late:
        return None
    point = late[0]
    won = _of(less(start.train, point.train), mean(start.train))
    if not won.mean < STILL or won.low < -RISE:
        return None
    return Advice(
        "does_not_fall",
        point.step,
        f"the loss hardly falls: on training {facts.samples} it is {_percent(won.mean)} lower than before the run, so "
        f"the learning rate is too low, or the base knows these {facts.samples} already",
        f"learning_rate: {facts.learning_rate * 10:.2g}",
    )


def _memorises(start: Evaluation, points: Sequence[Evaluation], facts: Facts) -> Advice | None:
    """Training pictures get better and held-out ones worse, over at least two measurements after the best."""
    best = best_of(points)
    if best is None or len(best.held) < FEWEST:
        return None
    after = points[points.index(best) + 1 :]
    if len(after) < 2:
        return None
    floor = mean(start.held)
    for i in range(1, len(after)):
        lost = [_of(less(point.held, best.held), floor) for point in after[i - 1 : i + 1]]
        won = _of(less(best.train, after[i].train), mean(start.train))
        if all(x.mean > WORSE for x in lost) and any(x.low > 0 for x in lost) and won.low > 0:
            epochs = max(1, round(best.step / facts.steps_per_epoch))
            return Advice(
                "memorises",
                after[i].step,
                f"it begins to memorise: since step {best.step} the held-out loss has risen by "
                f"{_percent(lost[1].mean)} while that of training {facts.samples} fell; "
                f"{facts.name}-best{facts.suffix} is from before",
                f"epochs: {epochs}, or more {facts.samples}",
            )
    return None


def never_fit(step: int, names: Sequence[str], ratios: Sequence[float]) -> Advice | None:
    """Pictures that lost where the others gained; `ratios`: log of the loss after over before.

    Only in a set that has gained as a whole, and only if they are few: else it is not they who do not fit.
    """
    if len(names) < LEAST:
        return None
    middle = median(ratios)
    spread = max(1.4826 * median([abs(r - middle) for r in ratios]), 0.02)
    bad = [n for n, r in zip(names, ratios, strict=True) if (r - middle) / spread > STRAY and r > 0]
    if middle > -GAIN or not bad or len(bad) > len(names) / 4:
        return None
    few = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
    return Advice(
        "never_fit",
        step,
        f"{few} did not fit: the others' loss at high noise fell by {_percent(1 - math.exp(middle))}, theirs "
        "rose, so look whether picture and caption belong to this set",
        "a train_data_dir without them",
        tuple(bad),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def _of(differences: Sequence[float], floor: float) -> Interval:
    """As a share of the loss before training."""
    return bootstrap([d / floor for d in differences])
