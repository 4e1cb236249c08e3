"""The arithmetic of a benchmark: when a curve has come down to a level, and what is known of a median."""

from __future__ import annotations

import math
import random

import pytest
from benchmarks.medians import interval, level_of, reached


def test_a_level_is_reached_where_the_line_between_two_points_crosses_it_first() -> None:
    curve = [(0.0, 1.0), (10.0, 0.6), (20.0, 0.8), (30.0, 0.2)]
    assert reached(curve, 0.7) == pytest.approx(7.5)  # not at 23.3, where it comes down a second time
    assert reached(curve, 0.6) == 10.0
    assert reached(curve, 0.5) == pytest.approx(25.0)
    assert reached(curve, 1.0) == 0.0
    assert math.isinf(reached(curve, 0.1))
    assert level_of(1.0, 0.2, 0.95) == pytest.approx(0.24)
    assert level_of(0.397893, 0.111345, 1.0) == 0.111345


@pytest.mark.parametrize(("count", "low", "high"), [(3, 1, 3), (5, 1, 5), (6, 1, 6), (9, 2, 8), (15, 4, 12)])
def test_the_ranks_of_the_interval_are_those_of_the_tables(count: int, low: int, high: int) -> None:
    """Of the sign test at 5 %: it rejects with 0 of 6, 1 of 9 and 3 of 15, and never with 3 or 5 values."""
    values = [float(n) for n in range(1, count + 1)]
    random.Random(0).shuffle(values)
    assert interval(values) == (low, high)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    chance = random.Random(1)
    held = [interval([chance.expovariate(1) for _ in range(15)]) for _ in range(4000)]
    share = sum(low <= math.log(2) <= high for low, high in held) / len(held)
    assert 0.95 < share < 0.975  # exactly 0.9648
