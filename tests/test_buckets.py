"""Bucket and crop arithmetic, as properties over many sizes."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys

import pytest

from lora_scripts.data.buckets import bucket_sizes, choose_bucket, views
from lora_scripts.errors import UserError

RESOLUTIONS = [
    (512, 512),
    (768, 768),
    (1024, 1024),
    (512, 768),
    (832, 1216),
    (128, 128),
    (96, 64),
    (520, 520),
    (1024, 320),
]


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_sizes(resolution: tuple[int, int]) -> None:
    sizes = bucket_sizes(resolution)
    assert resolution in sizes and len(sizes) == len(set(sizes)) >= 5
    area, step = resolution[0] * resolution[1], 64 if min(resolution) >= 512 else min(resolution) // 64 * 8
    for width, height in sizes:
        if (width, height) != resolution:
            assert width % step == height % step == 0
            assert width * height <= area < (width + step) * (height + step)
    ratios = [width / height for width, height in sizes]
    assert ratios == sorted(ratios)
    assert min(ratios) <= 0.5 and max(ratios) >= 2
    between = [b / a for a, b in itertools.pairwise(ratios) if 0.5 <= a <= 2]
    assert max(between) < 1.5, "no image between two buckets loses more than a fifth"


def test_known_sizes() -> None:
    assert {(512, 512), (448, 576), (640, 384), (320, 768)} <= set(bucket_sizes((512, 512)))
    assert {(1024, 1024), (832, 1216), (1216, 832), (768, 1344)} <= set(bucket_sizes((1024, 1024)))
    assert (128, 128) in bucket_sizes((128, 128)) and (96, 160) in bucket_sizes((128, 128))


@pytest.mark.parametrize("side", [64, 96, 192, 208, 256, 320, 512, 1024])
@pytest.mark.parametrize("step", [16, 32])
def test_sizes_of_a_base_that_wants_multiples_of_16(side: int, step: int) -> None:
    sizes = bucket_sizes((side, side), step, 16)
    assert len(sizes) >= 3 and all(width % 16 == height % 16 == 0 for width, height in sizes)
    with pytest.raises(UserError, match="multiples of 16"):
        bucket_sizes((side, side + 8), step, 16)


@pytest.mark.parametrize("resolution", [(100, 100), (512, 500), (32, 512), (0, 0), (-64, 64)])
def test_bad_resolution(resolution: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="multiples of 8"):
        bucket_sizes(resolution)


def test_choose() -> None:
    sizes = bucket_sizes((512, 512))
    assert choose_bucket((3000, 3000), sizes) == (512, 512)
    assert choose_bucket((1920, 1080), sizes) in {(640, 384), (704, 320)}
    assert choose_bucket((100, 5000), sizes) == min(sizes, key=lambda size: size[0] / size[1])
    assert choose_bucket((600, 600), bucket_sizes((520, 520))) == (520, 520)
    portrait, landscape = choose_bucket((600, 900), sizes), choose_bucket((900, 600), sizes)
    assert portrait == landscape[::-1]


def test_views_lie_inside_and_do_not_distort() -> None:
    rng = random.Random(0)
    for index in range(500):
        size = (rng.randint(16, 5000), rng.randint(16, 5000))
        bucket = choose_bucket(size, bucket_sizes(rng.choice(RESOLUTIONS)))
        all_views = views(size, bucket, flip=True, random_crop=True, seed=1, index=index)
        assert len(all_views) == 8
        for view in all_views:
            assert 0 <= view.left <= view.scaled[0] - bucket[0]
            assert 0 <= view.top <= view.scaled[1] - bucket[1]
            factor = max(bucket[0] / size[0], bucket[1] / size[1]) * (1 if view in all_views[:2] else 1.125)
            assert abs(view.scaled[0] - size[0] * factor) <= 0.5 + 1e-6
            assert abs(view.scaled[1] - size[1] * factor) <= 0.5 + 1e-6


def test_which_views() -> None:
    options = {"seed": 7, "index": 3}
    (centre,) = views((1000, 500), (512, 512), flip=False, random_crop=False, **options)
    assert (centre.scaled, centre.left, centre.top, centre.flip) == ((1024, 512), 256, 0, False)
    flipped = views((1000, 500), (512, 512), flip=True, random_crop=False, **options)
    assert [view.flip for view in flipped] == [False, True] and flipped[0] == centre
    crops = views((1000, 500), (512, 512), flip=False, random_crop=True, **options)
    assert len(crops) == len(set(crops)) == 4 and crops[0] == centre
    both = views((1000, 500), (512, 512), flip=True, random_crop=True, **options)
    assert both[::2] == crops and all(view.flip for view in both[1::2])
    assert crops != views((1000, 500), (512, 512), flip=False, random_crop=True, seed=7, index=4)
    assert crops != views((1000, 500), (512, 512), flip=False, random_crop=True, seed=8, index=3)


def test_random_positions_reach_the_edges() -> None:
    lefts = [
        view.left
        for index in range(600)
        for view in views((640, 640), (512, 512), flip=False, random_crop=True, seed=0, index=index)[1:]
    ]
    assert min(lefts) == 0 and max(lefts) == 576 - 512
    assert math.isclose(sum(lefts) / len(lefts), 32, abs_tol=1.5)


def test_views_are_the_same_in_another_process() -> None:
    code = (
        "from lora_scripts.data.buckets import views;"
        "print(views((900, 800), (512, 512), flip=True, random_crop=True, seed=5, index=9))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert out == str(views((900, 800), (512, 512), flip=True, random_crop=True, seed=5, index=9))
