"""Copies among drawn pictures, from latents made so that the answer is known."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from lora_scripts.train.memorised import Asked, compare, features, pairs, spacing, verdict, welch


def latents(count: int, seed: int) -> list[torch.Tensor]:
    return [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1000 * seed + i)) for i in range(count)]


def test_features_pool_and_forgive_a_small_shift() -> None:
    one = torch.arange(4 * 16 * 24, dtype=torch.float32).reshape(4, 16, 24)
    found = features([one])
    assert found.shape == (1, 4 * 64)
    assert found[0, 0] == one[0, :2, :3].mean()
    smooth = torch.nn.functional.avg_pool2d(
        torch.randn(1, 4, 70, 70, generator=torch.Generator().manual_seed(1)), 7, 1
    )[0]
    a, b, other = smooth[:, :48, :48], smooth[:, 1:49, :48], torch.flip(smooth[:, :48, :48], (1, 2))
    f = features([a, b, other])
    assert (f[0] - f[1]).norm() < 0.5 * (f[0] - f[2]).norm()


def test_the_unit_is_the_usual_distance_to_the_nearest_other() -> None:
    assert spacing(torch.tensor([[0.0], [1.0], [3.0], [7.0]])) == pytest.approx(1.0)  # 1, 1, 2, 4: the lower median
    assert spacing(torch.zeros(3, 2)) > 0  # copies of one picture
    # three training pictures and a held-out one at the corners of a square round (5, 5)
    train, held = torch.tensor([[6.0, 5.0], [5.0, 6.0], [4.0, 5.0]]), torch.tensor([[5.0, 4.0]])
    found = pairs(torch.tensor([[5.0, 5.5], [5.0, 3.0], [10.0, 5.0]]), train, held)
    assert [(p.drawn, p.train) for p in found[:2]] == [(0, 1), (2, 0)]  # whatever their contrast
    assert [p.distance for p in found] == pytest.approx([0, 0, 1], abs=1e-6)  # in units of sqrt(2)
    assert [p.outside for p in found] == pytest.approx([2**0.5, 1, 0], abs=1e-6)
    assert [p.copy for p in found] == [True, True, False]


def asked(count: int) -> list[Asked]:
    """As many captions of trained pictures, the first of ten, and then of held-out ones."""
    return [Asked(i, i, True) for i in range(count)] + [Asked(count + i, 10 + i, False) for i in range(count)]


def test_copies_are_told_from_new_pictures() -> None:
    train, held, new = features(latents(10, 1)), features(latents(5, 2)), features(latents(6, 3))
    fresh = compare(new, train, held, asked(3))
    assert fresh.copies == 0 and not fresh.memorises
    assert verdict(fresh).startswith("no copies: 0 of 6")
    copied = torch.cat([train[:3] + 0.01, new[:3]])
    found = compare(copied, train, held, asked(3))
    assert {(p.drawn, p.train, p.copy) for p in found.pairs[:3]} == {(0, 0, True), (1, 1, True), (2, 2, True)}
    assert found.memorises and verdict(found).startswith("memorised: 3 of 6")
    assert not compare(copied[2:], train, held, []).memorises  # one alone may be chance


def test_a_set_that_is_all_alike_is_not_memorised() -> None:
    """A character's pictures: drawn ones are near to trained ones, but as near to those that nobody trained."""
    rng = torch.Generator().manual_seed(5)
    kinds = features(latents(4, 1))  # of each picture there are several that are nearly the same

    def some(count: int) -> torch.Tensor:
        return kinds[torch.arange(count) % 4] + 0.3 * torch.randn(count, kinds.shape[1], generator=rng)

    train, held, drawn = some(12), some(4), 0.97 * kinds[torch.arange(8) % 4]
    questions = [Asked(i, i, True) for i in range(4)] + [Asked(4 + i, 12 + i, False) for i in range(4)]
    found = compare(drawn, train, None, questions[:4])
    assert found.copies == 8 and found.memorises  # with nothing held out, nearness is all there is
    found = compare(drawn, train, held, questions)
    assert found.nearer is not None and not found.memorises


def test_welch_is_scipys() -> None:
    one, other = [0.1, 0.4, 0.2, 0.35], [0.9, 0.5, 0.7]
    found = welch(one, other)
    theirs = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.mean == pytest.approx(sum(one) / 4 - sum(other) / 3)


def test_near_to_both_is_no_copy() -> None:
    """In a set of near alike pictures a drawn one is near to a held-out one, too."""
    train, held = features(latents(6, 1)), features(latents(6, 1)) + 0.001
    assert not any(pair.copy for pair in pairs(train + 0.002, train, held))
    assert all(pair.copy for pair in pairs(train + 0.002, train))
