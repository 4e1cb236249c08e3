"""Advice from constructed measurements: each fault is told with step and change, and health is not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lora_scripts.train.advise import Advice, Facts, advise, never_fit
from lora_scripts.train.evidence import Evaluation

FACTS = Facts(learning_rate=1e-3, total=100, steps_per_epoch=10, warmup=0, name="neon")


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


def test_a_run_that_memorises() -> None:
    taken = measured(falling(0.3), lambda x: 0.8 + 0.5 * max(0, x - 0.3) if x >= 0.3 else 1 - x / 2)
    found = one(taken)
    assert (found.kind, found.change) == ("memorises", "epochs: 3, or more pictures")
    assert "since step 30" in found.message and "neon-best.safetensors" in found.message
    few = [Evaluation(e.step, e.held[:3], e.train, e.name) for e in taken]
    assert advise(few, FACTS) == []  # three pictures are too few
    both = measured(lambda x: 0.8 + 0.5 * max(0, x - 0.3) if x >= 0.3 else 1 - x / 2, falling(0.3))
    assert all(a.kind != "memorises" for a in advise(both, FACTS))
    # where training pictures get worse with the held-out ones, nothing is being learnt by heart
    worse = measured(lambda x: 0.6 + 0.1 * abs(x - 0.3), lambda x: 0.8 + 0.5 * abs(x - 0.3))
    assert all(a.kind != "memorises" for a in advise(worse, FACTS))


def test_too_little_is_not_judged() -> None:
    assert advise([], FACTS) == [] == advise(measured(falling(0.5), falling(0.5))[:1], FACTS)
    flat = measured(lambda x: 1.0, lambda x: 1.0)
    assert advise([Evaluation(e.step, e.held, e.train[:3], e.name) for e in flat], FACTS) == []


def test_pictures_that_never_fit_are_named() -> None:
    rng = random.Random(0)
    names = [f"{i}.png" for i in range(30)]
    good = [-0.5 + rng.gauss(0, 0.04) for _ in names]
    assert never_fit(100, names, good) is None
    mixed = [0.05 if i in (3, 17) else r for i, r in enumerate(good)]
    found = never_fit(100, names, mixed)
    assert found is not None and found.names == ("3.png", "17.png") and found.kind == "never_fit"
    assert never_fit(100, names[:8], mixed[:8]) is None  # a set too small
    assert never_fit(100, names, [r / 20 for r in mixed]) is None  # a run that learnt nothing
    assert never_fit(100, names, [r - 0.1 for r in mixed]) is None  # they gained less than the others, but gained
    half = [0.05 if i % 3 == 0 else r for i, r in enumerate(good)]
    assert never_fit(100, names, half) is None  # too many to be strays
