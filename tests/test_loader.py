"""Order and chance as functions of their arguments."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from lora_scripts.data.loader import Draw, caption_for, draw, epoch_batches, quantile
from lora_scripts.train.feed import Feed, Settings
from toy import Toy

BUCKETS = ["wide"] * 13 + ["tall"] * 6 + ["square"] * 3 + ["wide"] * 2


@pytest.mark.parametrize("batch_size", [1, 2, 4, 50])
@pytest.mark.parametrize("repeats", [1, 3])
def test_every_image_exactly_repeats_times_and_one_bucket_a_batch(batch_size: int, repeats: int) -> None:
    batches = epoch_batches(BUCKETS, batch_size=batch_size, repeats=[repeats] * len(BUCKETS), seed=1, epoch=0)
    assert Counter(index for batch in batches for index in batch) == dict.fromkeys(range(len(BUCKETS)), repeats)
    assert all(len({BUCKETS[index] for index in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    smaller = [BUCKETS[batch[0]] for batch in batches if len(batch) < batch_size]
    assert len(smaller) == len(set(smaller)), "at most one smaller batch for each bucket"


def test_an_image_does_not_meet_itself_while_others_wait() -> None:
    for epoch in range(20):
        batches = epoch_batches(["a"] * 8, batch_size=4, repeats=[5] * 8, seed=0, epoch=epoch)
        assert all(len(set(batch)) == 4 for batch in batches)


def test_images_come_as_often_as_they_shall_at_even_distances() -> None:
    repeats = [6] * 4 + [2] * 4 + [1] * 4
    batches = epoch_batches(["a"] * 12, batch_size=36, repeats=repeats, seed=0, epoch=3)  # one, in the queue's order
    (order,) = batches
    assert Counter(order) == dict(enumerate(repeats))
    for index, count in enumerate(repeats):
        places = [place / len(order) for place, one in enumerate(order) if one == index]
        assert all(abs(place - (turn + 0.5) / count) < 0.6 / count for turn, place in enumerate(places))
    for few in (order[:12], order[12:24], order[24:]):  # each third holds about a third of each kind
        assert [sum(lo <= i < lo + 4 for i in few) for lo in (0, 4)] == [pytest.approx(n, abs=2) for n in (8, 8 / 3)]


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(BUCKETS, batch_size=4, repeats=[2] * len(BUCKETS), seed=seed, epoch=epoch)

    state = random.getstate()
    fifth = order(1, 5)
    random.seed(99)
    assert [order(1, epoch) for epoch in range(6)][5] == fifth
    random.setstate(state)
    assert len({str(order(seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    before = random.getstate()
    order(1, 5)
    draw(1, 5, 0, 0, variants=8, caption_dropout=0.1)
    caption_for("a, b, c", shuffle=True, keep=0, rng_key="1")
    assert random.getstate() == before


def test_batches_of_the_buckets_are_mixed() -> None:
    batches = epoch_batches(["a"] * 50 + ["b"] * 50, batch_size=5, repeats=[1] * 100, seed=0, epoch=0)
    kinds = [batch[0] < 50 for batch in batches]
    assert sum(x != y for x, y in itertools.pairwise(kinds)) > 4


def test_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from lora_scripts.data.loader import *;"
        f"print(epoch_batches({BUCKETS!r}, batch_size=4, repeats=[2] * 24, seed=3, epoch=4),"
        "draw(3, 4, 5, 6, variants=8, caption_dropout=0.5),"
        "caption_for('a, b, c, d, e, f', shuffle=True, keep=1, rng_key='3/4/5'))"
    )
    here = " ".join(
        map(
            str,
            (
                epoch_batches(BUCKETS, batch_size=4, repeats=[2] * 24, seed=3, epoch=4),
                draw(3, 4, 5, 6, variants=8, caption_dropout=0.5),
                caption_for("a, b, c, d, e, f", shuffle=True, keep=1, rng_key="3/4/5"),
            ),
        )
    )
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", code]
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip() == here


@pytest.mark.parametrize(
    ("buckets", "repeats", "accumulation", "steps"),
    [("a" * 50, 1, 1, 13), ("a" * 50, 2, 1, 25), ("a" * 50, 1, 2, 7), ("aaaaabbbbb", 1, 1, 4)],
)
def test_steps(buckets: str, repeats: int, accumulation: int, steps: int) -> None:
    """A last batch and a last step may have fewer; batches are of one bucket."""
    pictures: list[Any] = [SimpleNamespace(shape=bucket, repeats=1) for bucket in buckets]
    settings = Settings(4, accumulation, repeats, 1, 0.0, False, 1)
    assert Feed(Toy(), pictures, settings, cache_text=False).steps_per_epoch == steps


def test_draw_is_stateless_and_fair() -> None:
    draws = [draw(1, 0, position, position % 50, variants=8, caption_dropout=0.25) for position in range(8000)]
    assert draws[77] == draw(1, 0, 77, 27, variants=8, caption_dropout=0.25)
    counts = Counter(d.variant for d in draws)
    assert sorted(counts) == list(range(8)) and all(abs(count - 1000) < 5 * 30 for count in counts.values())
    assert abs(sum(d.drop_caption for d in draws) - 2000) < 5 * 39  # five standard deviations
    together = sum(d.drop_caption for d in draws if d.variant < 4)
    assert abs(together - 1000) < 5 * 30, "independent of the view"
    keys = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    assert len({draw(*key, variants=10**9, caption_dropout=0).variant for key in keys}) == 4, "each part counts"


def test_noise_levels_in_a_row_are_spread_evenly() -> None:
    for seed, first in ((1, 0), (2, 7), (3, 10**7)):
        row = [quantile(seed, number) for number in range(first, first + 1000)]
        assert all(0 <= q < 1 for q in row)
        for count, widest in ((4, 0.382), (8, 0.236), (16, 0.0902)):  # powers of the golden ratio (Sós 1958)
            for start in range(0, 200, count):
                some = sorted(row[start : start + count])
                gaps = [b - a for a, b in itertools.pairwise([*some, some[0] + 1])]
                assert max(gaps) < widest + 1e-3
        assert all(abs(n - 100) <= 2 for n in Counter(int(10 * q) for q in row).values())
    assert len({round(quantile(seed, 0), 3) for seed in range(20)}) > 15, "chance decides where they start"


def test_draw_at_the_ends() -> None:
    assert not any(draw(0, 0, n, 0, variants=1, caption_dropout=0.0).drop_caption for n in range(300))
    assert all(draw(0, 0, n, 0, variants=1, caption_dropout=1.0) == Draw(0, True) for n in range(300))


def test_dropout_does_not_move_the_views() -> None:
    with_and_without = [
        [draw(0, 0, n, n, variants=4, caption_dropout=p).variant for n in range(50)] for p in (0.0, 0.9)
    ]
    assert with_and_without[0] == with_and_without[1]


def test_tags() -> None:
    caption = "cyberpunk ,a, b,c,, d, e"
    assert caption_for(caption, shuffle=False, keep=1, rng_key="x") == caption
    orders = [caption_for(caption, shuffle=True, keep=2, rng_key=f"{n}") for n in range(50)]
    assert orders[0] == caption_for(caption, shuffle=True, keep=2, rng_key="0")
    assert all(order.startswith("cyberpunk, a, ") for order in orders)
    assert {tuple(sorted(order.split(", "))) for order in orders} == {("a", "b", "c", "cyberpunk", "d", "e")}
    assert len(set(orders)) > 15  # of 24
    assert caption_for("a, b", shuffle=True, keep=9, rng_key="x") == "a, b"
    assert caption_for("", shuffle=True, keep=0, rng_key="x") == ""
    wide = caption_for("霓虹，夜晚、雨，1girl", shuffle=False, keep=1, rng_key="x", dropout=0.999)
    assert wide == "霓虹"  # the commas of an input method
