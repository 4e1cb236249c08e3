"""What a run's measurements advise, in words. Pure functions, made to be silent on a healthy run.

The loss of a single step scatters with the noise level that it drew, so nothing here looks at it: all tests are on
`evidence.Evaluation`s, the same pictures at the same noise, whose differences are paired. Each test needs both a
difference that the bootstrap over pictures tells from zero and one that is large enough to matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lora_scripts.train.evidence import FEWEST, Evaluation, Interval, best_of, bootstrap, less, mean

RISE = 0.02
"""Of the loss before training: a rise that counts."""
SWING = 0.015
"""Of the loss before training: an up or down from one measurement to the next that counts as a swing."""
STILL = 0.015
"""Of the loss before training: what a run has to gain by half of its steps."""
WORSE = 0.01
"""Of the loss before training: how much the held-out pictures lose while a run memorises."""

GAP = 0.4
"""How much more of their loss training pictures lost than held-out ones, as a difference of logarithms, from which on a
held-out loss that no longer falls is a sign of memorising."""
LEARNT = 0.15
"""Of the training pictures' loss: what they gained since the held-out loss stood still, for the same."""
HEART = 0.5
"""The same difference, from which on pictures are learnt by heart though others still get better: healthy runs of 9 to
29 pictures came to 0.43, such of 4 to 8 and 150 steps to 0.33 to 1.1."""
AHEAD = 1.25
"""Of the LoRA's strength: at which a run is measured once more in the end."""
BETTER, MORE = 0.02, 0.05
"""Of the loss, how much lower it must be there, or of what the run has gained, how much more that must be, on all that
is measured and on what is held out, to call it short. As long as the loss falls in a line the second is 0.25, however
little was gained; of healthy runs it was 0.04 at most, mostly less than nothing."""

SHORT, USUAL = 40, 400
"""Steps: of a run that is told before it begins to be too short, and what a LoRA mostly needs."""


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
    epochs: int = 1
    below: float = math.inf
    """Learning rates that can be advised: higher ones are refused."""


@dataclass(frozen=True)
class Advice:
    """One thing to say."""

    kind: str
    """rises, oscillates, does_not_fall, too_short, memorises, never_fit"""
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
            share = "no number" if not math.isfinite(rise.mean) else f"{percent(rise.mean)} above"
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
        f"the loss hardly falls: on training {facts.samples} it is {_moved(won.mean)} than before the run, so "
        f"the learning rate is too low, or the base knows these {facts.samples} already",
        f"learning_rate: {rate:.2g}" if (rate := facts.learning_rate * 10) < facts.below else _longer(facts),
    )


def too_short(start: Evaluation, last: Evaluation, ahead: Evaluation, facts: Facts) -> Advice | None:
    """That a stronger LoRA would fit better, both training and held-out pictures: it has not learnt its fill.

    `ahead`: the last weights at `AHEAD` times their strength, as if they had gone on in the same direction.
    """

    everything, unseen = [*last.train, *last.held], last.held or last.train
    won = less(everything, [*ahead.train, *ahead.held])
    won_unseen = mean(less(unseen, ahead.held or ahead.train))
    gained = mean(less([*start.train, *start.held], everything))
    gained_unseen = mean(less(start.held or start.train, unseen))
    lower, held = mean(won) / mean(everything), won_unseen / mean(unseen)
    better = lower > BETTER and held > BETTER
    more = mean(won) / gained if gained > 0 else 0.0
    much = more > MORE and gained_unseen > 0 and won_unseen / gained_unseen > MORE
    if len(last.train) < FEWEST or bootstrap(won).low <= 0 or not (better or much):
        return None
    return Advice(
        "too_short",
        last.step,
        f"it has not learnt its fill: {AHEAD:g} times as strong, the LoRA would have a loss {percent(lower)} lower"
        + (f", and {percent(held)} on held-out {facts.samples}" if last.held else "")
        + f", and so have gained {percent(more)} more",
        f"epochs: {math.ceil(USUAL / facts.steps_per_epoch)}"
        if facts.total < SHORT
        else f"learning_rate: {rate:.2g}, or {_longer(facts)}"
        if (rate := facts.learning_rate * 4) < facts.below
        else _longer(facts),
    )


def _longer(facts: Facts) -> str:
    return f"epochs: {2 * facts.epochs}"


def _memorises(start: Evaluation, points: Sequence[Evaluation], facts: Facts) -> Advice | None:
    """Training pictures get better and held-out ones worse, over at least two measurements after the best; or the
    held-out ones stand still while the training pictures leave them far behind; or these are farther ahead still."""
    best = best_of(points)
    if best is None or len(best.held) < 2:
        return None
    floor = mean(start.held)
    level = next(p for p in points if mean(p.held) <= best.loss + WORSE * floor)
    after = points[points.index(best) + 1 :]
    for before, now in pairwise(after):
        lost = [_of(less(point.held, best.held), floor) for point in (before, now)]
        won = _of(less(best.train, now.train), mean(start.train))
        enough = len(best.held) >= FEWEST and any(x.low > 0 for x in lost)
        if all(x.mean > WORSE for x in lost) and won.low > 0 and (enough or _apart(start, best, now)):
            return _memorised(start, best, now, facts)
    for now in points[points.index(level) + 2 :]:
        if _apart(start, level, now):
            return _memorised(start, level, now, facts)
    for n, point in enumerate(points):
        learns = mean(point.train) <= min(mean(before.train) for before in points[: n + 1])
        if learns and _gap(start, point) > HEART:
            return _by_heart(start, point, facts)
    return None


def _gap(start: Evaluation, now: Evaluation) -> float:
    return math.log(now.loss / start.loss) - math.log(mean(now.train) / mean(start.train))


def _apart(start: Evaluation, since: Evaluation, now: Evaluation) -> bool:
    """That the training pictures have gone on without the held-out ones."""
    return _gap(start, now) > GAP and mean(now.train) < (1 - LEARNT) * mean(since.train)


def _by_heart(start: Evaluation, now: Evaluation, facts: Facts) -> Advice:
    fell, others = (1 - b / a for a, b in ((mean(start.train), mean(now.train)), (start.loss, now.loss)))
    theirs = f"fell by {percent(others)}" if others >= 0 else f"rose by {percent(-others)}"
    return Advice(
        "memorises",
        now.step,
        f"it learns its {facts.samples} by heart: their loss fell by {percent(fell)}, that of held-out ones {theirs}",
        f"more {facts.samples}",
    )


def _memorised(start: Evaluation, since: Evaluation, now: Evaluation, facts: Facts) -> Advice:
    """In words, with how sure it is."""
    rise = _of(less(now.held, since.held), mean(start.held))
    moved = f"risen by {percent(rise.mean)}" if rise.mean >= 0.0005 else "hardly fallen"
    fall = percent(1 - mean(now.train) / mean(since.train))
    worse = sum(a > b for a, b in zip(now.held, since.held, strict=True))
    sure = (
        ""
        if len(now.held) >= FEWEST
        else (f" ({worse} of {len(now.held)} held-out {facts.samples} are worse: so few are a sign, no proof)")
    )
    epochs = max(1, round(since.step / facts.steps_per_epoch))
    return Advice(
        "memorises",
        now.step,
        f"it begins to memorise: since step {since.step} the held-out loss has {moved} while that of training "
        f"{facts.samples} fell by {fall}{sure}; {facts.name}-best{facts.suffix} is from before",
        f"epochs: {epochs}, or more {facts.samples}",
    )


def _moved(won: float) -> str:
    return f"{percent(won)} lower" if won >= 0 else f"{percent(-won)} higher"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def _of(differences: Sequence[float], floor: float) -> Interval:
    """As a share of the loss before training."""
    return bootstrap([d / floor for d in differences])
