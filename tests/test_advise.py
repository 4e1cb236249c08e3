"""Advice from constructed measurements: each fault is told with step and change, and health is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from lora_scripts.report import chinese
from lora_scripts.train.advise import Advice, Facts, advise, too_short
from lora_scripts.train.evidence import Evaluation

FACTS = Facts(learning_rate=1e-3, total=100, steps_per_epoch=10, warmup=0, name="neon", epochs=10)


def measured(
    train: Callable[[float], float], held: Callable[[float], float], *, pictures: int = 5, seed: int = 0
) -> list[Evaluation]:
    """Eleven measurements over 100 steps: `train(x)`, `held(x)` are the loss as a share of the base's at x = 0 … 1."""
    rng = random.Random(seed)
    inside, outside = ([rng.uniform(0.1, 0.3) for _ in range(n)] for n in (6, pictures))
    taken = [Evaluation(0, outside, inside, "base")]
    for step in range(10, 101, 10):
        x = step / 100
        noisy = [[a * f(x) * rng.uniform(0.995, 1.005) for a in part] for part, f in ((outside, held), (inside, train))]
        taken.append(Evaluation(step, noisy[0], noisy[1]))
    return taken


def falling(to: float) -> Callable[[float], float]:
    return lambda x: to + (1 - to) * (1 - x) ** 3


def one(evaluations: list[Evaluation]) -> Advice:
    (found,) = advise(evaluations, FACTS)
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("to", [0.5, 0.8, 0.95])
def test_a_healthy_run_gets_none(to: float, seed: int) -> None:
    assert advise(measured(falling(to), falling((1 + to) / 2), seed=seed), FACTS) == []


def test_a_loss_that_rises() -> None:
    found = one(measured(lambda x: 1 + 2 * x, lambda x: 1 + 2 * x))
    assert (found.kind, found.step, found.change) == ("rises", 20, "learning_rate: 0.0001")
    assert "40 % above" in str(found) and str(found).startswith("step 20: ")
    # once is chance, but not at the end
    assert advise(measured(lambda x: 1.1 if x == 0.1 else 0.9 - x / 9, falling(0.9)), FACTS) == []
    assert one(measured(lambda x: 1.05 if x == 1 else 0.8, falling(0.9))).change == "learning_rate: 0.00033"


def test_a_loss_that_is_no_number() -> None:
    assert "no number" in one(measured(lambda x: float("nan"), lambda x: float("nan"))).message


def test_a_loss_that_oscillates() -> None:
    found = one(measured(lambda x: 0.9 if round(10 * x) % 2 else 0.8, falling(0.8)))
    assert (found.kind, found.step, found.change) == ("oscillates", 50, "learning_rate: 0.00033")


def test_a_loss_that_does_not_fall_is_told_after_half_of_the_run() -> None:
    flat = measured(lambda x: 1 - 0.005 * x, lambda x: 1 - 0.005 * x)
    found = one(flat)
    assert (found.kind, found.step, found.change) == ("does_not_fall", 50, "learning_rate: 0.01")
    assert advise(flat[:5], FACTS) == []


@pytest.mark.parametrize(
    ("below", "still", "short"),
    [
        (0.05, "learning_rate: 0.01", "learning_rate: 0.004, or epochs: 20"),
        (0.01, "epochs: 20", "learning_rate: 0.004, or epochs: 20"),
        (0.0, "epochs: 20", "epochs: 20"),
    ],
)
def test_no_rate_is_advised_that_is_refused(below: float, still: str, short: str) -> None:
    facts, flat = replace(FACTS, below=below), measured(lambda x: 1.0, lambda x: 1.0)
    assert [one.change for one in advise(flat, facts)] == [still]
    last = flat[-1]
    ahead = Evaluation(last.step, [0.9 * x for x in last.held], [0.9 * x for x in last.train])
    found = too_short(flat[0], last, ahead, facts)
    assert found is not None and found.change == short
    assert chinese.translated(f"try {short}") or chinese.translated(str(found))


def test_a_run_that_memorises() -> None:
    taken = measured(falling(0.3), lambda x: 0.8 + 0.5 * max(0, x - 0.3) if x >= 0.3 else 1 - x / 2)
    found = one(taken)
    assert (found.kind, found.change) == ("memorises", "epochs: 3, or more pictures")
    assert "since step 30" in found.message and "neon-best.safetensors" in found.message
    few = one([Evaluation(e.step, e.held[:3], e.train, e.name) for e in taken])
    assert (
        few.kind == "memorises" and "(3 of 3 held-out pictures are worse: so few are a sign, no proof)" in few.message
    )
    alone = [Evaluation(e.step, e.held[:1], e.train, e.name) for e in taken]
    assert advise(alone, FACTS) == []
    both = measured(lambda x: 0.8 + 0.5 * max(0, x - 0.3) if x >= 0.3 else 1 - x / 2, falling(0.3))
    assert all(a.kind != "memorises" for a in advise(both, FACTS))
    # where training pictures get worse with the held-out ones, nothing is being learnt by heart
    worse = measured(lambda x: 0.6 + 0.1 * abs(x - 0.3), lambda x: 0.8 + 0.5 * abs(x - 0.3))
    assert all(a.kind != "memorises" for a in advise(worse, FACTS))


def test_a_held_out_loss_that_stands_still_while_training_pictures_go_on() -> None:
    found = one(measured(lambda x: (1 - x) ** 2 + 0.1, lambda x: max(0.7, 1 - 2 * x), pictures=3))
    assert found.kind == "memorises" and "since step 20" in found.message
    # both stand still: nothing is learnt by heart
    assert advise(measured(lambda x: max(0.45, 1 - 4 * x), lambda x: max(0.7, 1 - 2 * x), pictures=3), FACTS) == []
    # a gap is no sign while held-out pictures get better, too
    assert advise(measured(falling(0.2), falling(0.3), pictures=3), FACTS) == []


def test_pictures_that_are_learnt_by_heart_while_others_still_get_better() -> None:
    found = one(measured(falling(0.2), falling(0.5), pictures=3))
    # (0.5 + 0.5 y³) / (0.2 + 0.8 y³), y what is left of the run, is above e^0.5 from y = 0.5 on, not yet at 0.6
    assert (found.kind, found.step, found.change) == ("memorises", 50, "more pictures")
    assert "by heart: their loss fell by 70 %, that of held-out ones fell by 44 %" in found.message


def test_a_run_that_would_be_better_stronger() -> None:
    start, *_, last = measured(falling(0.6), falling(0.7))

    def ahead(train: float, held: float) -> Evaluation:
        return Evaluation(last.step, [held * x for x in last.held], [train * x for x in last.train])

    found = too_short(start, last, ahead(0.96, 0.95), FACTS)
    assert found is not None and found.kind == "too_short"
    assert found.change == "learning_rate: 0.004, or epochs: 20"
    few = too_short(start, last, ahead(0.96, 0.95), replace(FACTS, total=12, steps_per_epoch=6, epochs=2))
    assert few is not None and few.change == "epochs: 67"  # what the note before the run asks for: 400 steps
    assert "a loss 4.5 % lower, and 5.0 % on held-out pictures, and so have gained" in found.message
    assert too_short(start, last, ahead(1.0, 0.97), FACTS) is None
    assert too_short(start, last, ahead(0.96, 1.0), FACTS) is None  # the others are none the better for it
    assert too_short(start, last, ahead(0.985, 0.985), FACTS) is None  # 1.5 % of it, and 2 and 3 of what was gained
    some = [x * (0.7 if i == 0 else 1.0) for i, x in enumerate(last.train)]
    held = [x * (0.7 if i == 0 else 1.0) for i, x in enumerate(last.held)]
    assert too_short(start, last, Evaluation(last.step, held, some), FACTS) is None  # two pictures alone say so


def test_a_rate_far_too_low_is_told_however_little_was_gained() -> None:
    before, after, ahead = (Evaluation(n, [0.2 * x] * 3, [0.1 * x] * 6) for n, x in ((0, 1.0), (9, 0.98), (9, 0.975)))
    found = too_short(before, after, ahead, FACTS)
    assert found is not None and found.message.endswith(
        "a loss 0.5 % lower, and 0.5 % on held-out pictures, and so have gained 25 % more"
    )
    assert too_short(after, before, ahead, FACTS) is not None  # nothing was gained, and 2.5 % could be
    assert too_short(after, before, Evaluation(9, [0.199] * 3, [0.0995] * 6), FACTS) is None


def test_too_little_is_not_judged() -> None:
    assert advise([], FACTS) == [] == advise(measured(falling(0.5), falling(0.5))[:1], FACTS)
    flat = measured(lambda x: 1.0, lambda x: 1.0)
    assert advise([Evaluation(e.step, e.held, e.train[:3], e.name) for e in flat], FACTS) == []
