"""Strays and exchanged captions, from losses made so that the answer is known."""

from __future__ import annotations

import numpy as np
from benchmarks.advice import wrong_captions

from lora_scripts.train.fit import deviations, strays

NAMES = [f"{i}.png" for i in range(30)]


def losses(seed: int, gained: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Before and after, [30 pictures, 2 noise levels]: each has a level of its own, and gains about as much."""
    rng = np.random.default_rng(seed)
    before = np.exp(rng.normal(-1.5, 0.3, (30, 1)) + rng.normal(0, 0.05, (30, 2)))
    return before, before * np.exp(-gained + rng.normal(0, 0.05, (30, 2)))


def test_deviations_are_robust() -> None:
    assert np.allclose(deviations(np.array([1.0, 2.0, 3.0, 4.0, 100.0]), 0.0), np.array([-2, -1, 0, 1, 97]) / 1.4826)
    assert deviations(np.array([1.0, 1.0, 1.2]), 0.1).tolist() == [0.0, 0.0, 1.9999999999999996]


def test_pictures_that_never_fit_are_named() -> None:
    before, after = losses(0)
    assert strays(100, NAMES, before, after) is None
    after[[3, 17]] = before.max() * 1.05  # worse than all others in the end
    found = strays(100, NAMES, before, after)
    assert found is not None and found.names == ("3.png", "17.png") and found.kind == "never_fit"
    assert "3.png, 17.png did not fit" in found.message and "fell by 45 %" in found.message
    assert strays(100, NAMES[:8], before[:8], after[:8]) is None  # a set too small
    assert strays(100, NAMES, after * 1.05, after) is None  # a run that learnt nothing


def test_what_the_base_knew_already_is_no_stray() -> None:
    before, after = losses(1)
    before[5] = after[5] = np.median(after)  # gained nothing, and has no higher loss than the others
    assert strays(100, NAMES, before, after) is None


def test_a_third_of_a_set_is_no_stray() -> None:
    before, after = losses(2)
    after[::3] = before.max()
    assert strays(100, NAMES, before, after) is None


def test_captions_that_do_not_fit_are_named() -> None:
    rng = np.random.default_rng(3)
    empty = np.exp(rng.normal(-1.5, 0.3, (30, 2)))
    own = empty * np.exp(-0.08 + rng.normal(0, 0.02, (30, 2)))
    assert wrong_captions(100, NAMES, own, empty) is None
    own[[4, 9]] = empty[[4, 9]] * 1.1
    found = wrong_captions(100, NAMES, own, empty)
    assert found is not None and found.names == ("4.png", "9.png") and found.kind == "wrong_captions"
    assert wrong_captions(100, NAMES, own * np.exp(0.1), empty) is None  # a model that no caption tells anything
    own[[4, 9]] = empty[[4, 9]]
    assert wrong_captions(100, NAMES, own, empty) is None  # they help nothing, but do no harm
