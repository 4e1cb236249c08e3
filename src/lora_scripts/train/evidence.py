"""What paired losses prove: mean differences with intervals, the best checkpoint, and when to stop. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lora_scripts.units import percent

FEWEST = 4
"""Pictures below which an interval would promise more than it holds."""
RESAMPLES = 4000


@dataclass(frozen=True)
class Evaluation:
    """The losses at one point of a run, a number for each picture: its mean over fixed noise levels."""

    step: int
    held: Sequence[float]
    """Of the held-out pictures; empty without any."""
    train: Sequence[float]
    """Of some training pictures."""
    name: str = ""
    """ "base": without the LoRA; "init": with `init_lora` as it was; empty: a checkpoint."""

    @property
    def loss(self) -> float:
        """The mean over the held-out pictures; not a number without any."""
        return mean(self.held)


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie, 95 %."""

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """That it is not zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Verdict:
    """What the held-out pictures say at the end."""

    best: Evaluation
    last: Evaluation
    improvement: Interval
    """Of the best over the base: how much lower its loss is."""
    gap: Interval
    """The last's loss less the best's, 0 where they are one."""
    against_init: Interval | None = None
    """How much lower the last's loss is than that of `init_lora`."""
    separate: bool = field(init=False)
    """That the evidence tells best and last apart."""

    @property
    def worse(self) -> bool:
        """That the base, which is a candidate like any checkpoint, has the lowest loss of all."""
        return not self.improvement.mean > 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "separate", len(self.best.held) >= FEWEST and self.gap.low > 0)


def mean(values: Sequence[float]) -> float:
    """Their mean; not a number for none."""
    return sum(values) / len(values) if values else math.nan


def less(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a - b, picture by picture."""
    return [x - y for x, y in zip(a, b, strict=True)]


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of differences of n pictures, with a percentile interval over pictures drawn again with replacement.

    Its two ends are set as far out as a t interval's would be (Hesterberg 2015, "What teachers should know about the
    bootstrap", section 3.3): plain percentiles are too narrow for few pictures.
    """
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Interval(float(array.mean()), -math.inf, math.inf)
    drawn = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.quantile(array[drawn].mean(1), [tail(len(array)), 1 - tail(len(array))])
    return Interval(float(array.mean()), float(low), float(high))


def tail(count: int) -> float:
    """The share beyond each end of a 95 % percentile interval over `count` pictures: Phi(-sqrt(n / (n - 1)) t)."""
    from scipy.special import ndtr, stdtrit

    t = stdtrit(count - 1, 0.975)  # the 97.5 % point of Student's t
    return float(ndtr(-math.sqrt(count / (count - 1)) * t))


def best_of(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The checkpoint with the lowest held-out loss, the earliest of equals; None without one."""
    points = [e for e in evaluations if not e.name and e.held and math.isfinite(e.loss)]
    return min(points, key=lambda e: (e.loss, e.step)) if points else None


def judge(evaluations: Sequence[Evaluation], seed: int = 0) -> Verdict | None:
    """What the evaluations of a run say; None without held-out pictures or checkpoints."""
    best = best_of(evaluations)
    if best is None:
        return None
    base = next(e for e in evaluations if e.name == "base")
    init = next((e for e in evaluations if e.name == "init"), None)
    last = [e for e in evaluations if not e.name][-1]
    gap = bootstrap(less(last.held, best.held), seed) if last is not best else Interval(0.0, 0.0, 0.0)
    against = bootstrap(less(init.held, last.held), seed) if init else None
    return Verdict(best, last, bootstrap(less(base.held, best.held), seed), gap, against)


def stalled(evaluations: Sequence[Evaluation], patience: int) -> bool:
    """That the last `patience` checkpoints have brought no new lowest held-out loss."""
    points = [e for e in evaluations if not e.name]
    best = best_of(points)
    return best is not None and len(points) - 1 - points.index(best) >= patience


# --- in words ---------------------------------------------------------------------------------------------------------


def change(won: float, base: float) -> str:
    """ "3.1 % lower" """
    return percent(abs(won) / base, 1) + (" lower" if won >= 0 else " higher")


def words(verdict: Verdict, taken: Sequence[Evaluation], samples: str = "pictures") -> list[str]:
    """What the held-out samples say at the end."""
    base, count = taken[0], len(verdict.best.held)
    won, gap = verdict.improvement, verdict.gap
    few = count < FEWEST
    better = sum(a < b for a, b in zip(verdict.best.held, base.held, strict=True))
    sure = f" ({better} of {count} {samples} are: too few for an interval)" if few else ""
    sure = sure or f" (95 %: {won.low:.4f} to {won.high:.4f})"
    lines = [
        f"held-out loss: base {base.loss:.4f}, lowest {verdict.best.loss:.4f} at step {verdict.best.step}, "
        f"{change(won.mean, base.loss)} by {won.mean:.4f}{sure}"
    ]
    if verdict.worse:
        lines.append(f"no checkpoint is better than the base model: on {samples} that it was not trained on, it harms")
    elif verdict.best is verdict.last:
        lines.append("the last step is the best")
    elif verdict.separate:
        sure = f"(95 %: {gap.low:.4f} to {gap.high:.4f})"
        lines.append(
            f"step {verdict.best.step} is better than the last, step {verdict.last.step}: by {gap.mean:.4f} {sure}"
        )
    else:
        lines.append(
            f"step {verdict.best.step} is not proved better than the last, step {verdict.last.step}: the difference is "
            f"{gap.mean:.4f}" + (f", of too few {samples}" if few else f" (95 %: {gap.low:.4f} to {gap.high:.4f})")
        )
    init = next((e for e in taken if e.name == "init"), None)
    if init is not None and verdict.against_init is not None:
        from_init = verdict.against_init
        sure = "" if few else f" (95 %: {from_init.low:.4f} to {from_init.high:.4f})"
        lines.append(
            f"before and after: base {base.loss:.4f}, init_lora {init.loss:.4f}, now {verdict.last.loss:.4f}, "
            f"{change(from_init.mean, init.loss)} than init_lora by {abs(from_init.mean):.4f}{sure}"
        )
    return lines
