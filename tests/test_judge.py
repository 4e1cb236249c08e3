"""The judge that ships: right on scenes it has not seen, wrong where it should be."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import torch
from benchmarks.miniature.build_judge import HIDDEN, accuracies, blurred, labels_of, softened
from PIL import Image
from torch.nn import functional as F

from lora_scripts.demo import evaluate, world
from lora_scripts.demo.judge import ASSET, SLOTS, Judge, Reading
from lora_scripts.evaluate.scoring import wilson

SEED = 909
"""None of the seeds of training."""


@cache
def _fresh() -> tuple[list[world.Scene], list[Image.Image]]:
    """30 plain, 15 neon and 15 sketched scenes."""
    counts = {"plain": 30, "neon": 15, "sketch": 15}
    scenes = [s for style, n in counts.items() for s in itertools.islice(world.scenes(SEED, style), n)]
    return scenes, [world.draw(scene) for scene in scenes]


def test_the_shipped_judge_reads_fresh_scenes() -> None:
    shares = accuracies(Judge.load(), *_fresh())
    assert set(shares) == set(SLOTS) and min(shares.values()) >= 0.95, shares


def test_it_still_reads_them_when_blurry() -> None:
    scenes, images = _fresh()
    plain = [(s, softened(i)) for s, i in zip(scenes, images, strict=True) if s.style == "plain"]
    shares = accuracies(Judge.load(), *zip(*plain, strict=True))
    assert min(shares.values()) >= 0.9, shares


def test_it_looks_at_the_pictures() -> None:
    scenes, images = _fresh()
    shares = accuracies(Judge.load(), scenes, images[7:30] + images[:7] + images[33:] + images[30:33])
    assert max(shares["object"], shares["colour"], shares["ground"]) < 0.6, shares
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (128, 128, 3), np.uint8)) for i in range(20)]
    grey = accuracies(Judge.load(), scenes[:20], noise)
    assert grey["object"] < 0.6 and grey["colour"] < 0.6


def test_a_change_of_one_word_changes_that_word() -> None:
    judge, base = Judge.load(), world.Scene("house", "red", "grass", "a clear sky", seed=4)
    for slot in ("object", "colour", "ground", "sky"):
        scenes = [world.Scene(**{**vars(base), slot: word}) for word in SLOTS[slot]]
        assert [r.key for r in judge.read([world.draw(s) for s in scenes])] == [s.key for s in scenes]


def test_the_file_is_small_and_half_precision() -> None:
    from safetensors.torch import load_file

    tensors = load_file(ASSET)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert sum(t.numel() for t in tensors.values()) <= 120_000 and ASSET.stat().st_size < 300_000
    assert Judge.load().read([]) == []


def test_labels_leave_out_what_a_style_hides() -> None:
    scene = world.Scene("tree", "white", "water", "a sunset sky")
    neon = world.Scene("tree", "white", "water", "a sunset sky", style="neon")
    assert HIDDEN["neon"] == ("colour",)
    assert labels_of([scene, neon]).tolist() == [[1, 6, 3, 1, 0], [1, -1, 3, 1, 1]]


def test_the_blur_is_a_gaussian() -> None:
    x = torch.zeros(1, 3, 33, 33)
    x[..., 16, 16] = 1.0
    y = blurred(x, 1.5)[0, 1]
    bell = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    bell /= bell.sum()
    np.testing.assert_allclose(y[12:21, 12:21].numpy(), np.outer(bell, bell), atol=1e-6)
    assert F.l1_loss(blurred(torch.full((1, 3, 9, 9), 0.3), 0.7), torch.full((1, 3, 9, 9), 0.3)) < 1e-6


def test_the_wilson_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, count), interval in published.items():
        assert np.allclose(wilson(hits, count), interval, atol=5e-5)


def test_prompts_are_seeded_and_leave_out_what_was_trained_on() -> None:
    trained = frozenset(s.key for s in world.training_scenes())
    asked = evaluate.prompts(1, 300, trained)
    assert len(asked) == 300 and not trained & {s.key for s in asked}
    assert asked == evaluate.prompts(1, 300, trained) != evaluate.prompts(2, 300, trained)
    assert trained & {s.key for s in evaluate.prompts(1, 300)}


def test_the_table_counts_and_the_sheet_names_what_is_wrong() -> None:
    scene = world.Scene("tree", "white", "water", "a sunset sky")
    right, wrong = Reading(*scene.key, "plain"), Reading("car", "white", "sand", "a sunset sky", "neon")
    image = world.draw(scene)
    found = [evaluate.Judged(scene, image, right)] * 3 + [evaluate.Judged(scene, image, wrong)]
    rows = dict(line.rsplit("  ", 1) for line in evaluate.table({"base": found}).splitlines())
    rows = {name.strip(): share for name, share in rows.items()}
    assert rows["object right"].startswith("75.0 % (30.1 % to 95.4 %)")
    assert rows["colour right"].startswith("100.0 %") and rows["neon"].startswith("25.0 %")
    assert found[0].wrong() == [] and found[3].wrong() == ["object", "ground", "style"]
    sheet = evaluate.contact_sheet({"base": found})
    under = np.asarray(sheet)[17 + 128 : 17 + 128 + 50]
    assert (under[:, 4 : 4 + 3 * 132] == 255).all() and not (under[:, 4 + 3 * 132 :] == 255).all()
