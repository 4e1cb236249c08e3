"""Captions that were exchanged: found in answers made by hand, and by the bundled base in pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import exchanged_captions as sets
from torch import Tensor

from lora_scripts.check import with_base
from lora_scripts.cli import main
from lora_scripts.demo import world
from lora_scripts.families import exchanged, strays
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.table import load_pictures

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
COUNT, CHANNELS, SIDE = 14, 4, 6


def answers(held: Sequence[int], *, seed: int = 0, known: float = 1.0, twins: int = 0) -> Tensor:
    """What a base misses of pictures in a style that turns the channels about, [2, n, n, c, h, w]: captions move its
    answer each in its own way, pictures are what their own caption says, through the style, and noise. `held` says
    which caption each has; of the first `twins` pairs, both say nearly the same."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(2):
        moves = torch.randn(COUNT, CHANNELS, SIDE, SIDE, generator=g)
        for pair in range(twins):
            moves[2 * pair + 1] = moves[2 * pair] + 0.02 * moves[2 * pair + 1]
        style, turn = torch.randn(CHANNELS, SIDE, SIDE, generator=g) * 3, torch.randn(CHANNELS, CHANNELS, generator=g)
        shown = known * torch.einsum("nchw,cd->ndhw", moves, turn) + torch.randn(moves.shape, generator=g) + style
        found.append(shown[:, None] - 0.3 * moves[list(held)][None])
    return torch.stack(found).half()


def by_hand(missed: np.ndarray, apart: bool) -> np.ndarray:
    """`misfit` of one level, with least squares for the maps and one picture and caption at a time."""
    n, c = missed.shape[0], missed.shape[2]
    coarse = missed.reshape(n, n, c, SIDE // 2, 2, SIDE // 2, 2).mean((4, 6))
    fine = missed - coarse.repeat(2, 3).repeat(2, 4)
    cost = np.zeros((n, n))
    for band in (coarse, fine):
        left = band.reshape(n, n, c, -1)
        y = left.mean(1)
        x = y[:, None] - left
        for i in range(n):
            used = [k for k in range(n) if k != i or not apart]
            centre_x, centre_y = np.mean([x[k, k] for k in used], 0), y[used].mean(0)
            rows_x = np.concatenate([(x[k, k] - centre_x).T for k in used])
            rows_y = np.concatenate([(y[k] - centre_y).T for k in used])
            turn = np.linalg.lstsq(rows_x, rows_y, rcond=None)[0]
            inverse = np.linalg.inv(np.cov((rows_y - rows_x @ turn).T, bias=True))
            for j in range(n):
                e = (y[i] - centre_y).T - (x[i, j] - centre_x).T @ turn
                cost[i, j] += np.trace(e @ inverse @ e.T)
    cost = cost - cost.mean(1, keepdims=True) - cost.mean(0) + cost.mean()
    return cost / cost[~np.eye(n, dtype=bool)].std(ddof=1)


@pytest.mark.parametrize("apart", [False, True])
def test_the_misfit_is_that_of_the_formula(apart: bool) -> None:
    missed = answers(range(COUNT))
    wanted = np.mean([by_hand(level.double().numpy(), apart) for level in missed], 0)
    found = exchanged.misfit(missed, apart=apart).numpy()
    np.testing.assert_allclose(found, wanted, atol=0.03)  # a ridge of a thousandth


def test_exchanged_captions_are_found_and_others_left_alone() -> None:
    for seed in range(5):
        assert exchanged.exchanged(answers(range(COUNT), seed=seed)) == []
    order = list(range(COUNT))
    order[2], order[9] = order[9], order[2]
    order[4], order[5], order[11] = order[5], order[11], order[4]
    found = exchanged.exchanged(answers(order))
    assert found is not None and {frozenset(one.cycle) for one in found} == {frozenset({2, 9}), frozenset({4, 5, 11})}
    round_ = next(one.cycle for one in found if len(one.cycle) == 3)
    for picture, other in zip(round_, round_[1:] + round_[:1], strict=True):
        assert order[other] == picture  # the caption of each belongs to the one before it
    assert all(one.gain > exchanged.LEAST_GAIN for one in found)


def test_nothing_is_said_where_the_base_knows_nothing_or_pictures_are_few() -> None:
    assert exchanged.exchanged(answers(range(COUNT), known=0.0)) is None
    few = answers(range(COUNT))[:, :9, :9]
    assert exchanged.exchanged(few) is None


def test_alike_captions_are_never_exchanged() -> None:
    order = [0, 0, *range(2, COUNT)]
    found = exchanged.exchanged(answers(order))
    assert found == [] or all(one.cycle not in ((0, 1), (1, 0)) for one in found or ())


def test_captions_that_say_nearly_the_same_stay_where_they_are() -> None:
    assert all(exchanged.exchanged(answers(range(COUNT), seed=seed, twins=4)) == [] for seed in range(5))


def write(folder: Path, captions: Sequence[str], scenes: Sequence[world.Scene]) -> list[str]:
    world.write_pictures(folder, list(scenes), 128)
    rows = "".join(f'img{i:03d}.png,"{caption}"\n' for i, caption in enumerate(captions, 1))
    (folder / "metadata.csv").write_text("filename,prompt\n" + rows, encoding="utf-8")
    return ["check", str(folder), "--resolution", "128x128", "--base", str(BASE)]


@pytest.mark.slow
def test_the_doctor_names_captions_and_a_stray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name, value in (
        (exchanged, "LEVELS", (0.5,)),
        (with_base, "LEVELS", (0.5,)),
        (exchanged, "LEAST", 9),
        (with_base, "LEAST", 9),
        (strays, "LEAST", 9),
    ):
        monkeypatch.setattr(module, name, value)  # a small set, for a quick test
    scenes = world.style_set("plain", 9, seed=4)
    captions = [world.caption(scene) for scene in scenes]
    captions[2], captions[6] = captions[6], captions[2]
    words = write(tmp_path / "data", captions, [*scenes[:8], replace(scenes[8], style="neon")])
    assert main([*words, "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    (mixed,) = (found for found in findings if found["kind"] == "captions_exchanged")
    (stray,) = (found for found in findings if found["kind"] == "stray")
    assert sorted(mixed["files"]) == ["img003.png", "img007.png"] and stray["files"] == ["img009.png"]
    assert (mixed["severity"], mixed["sure"], stray["severity"], stray["sure"]) == ("warning", 0.8, "note", 0.6)


def test_what_would_take_hours_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = world.style_set("plain", 2, seed=4)
    world.write_pictures(tmp_path, scenes, 128)
    images = {path.name: path for path in sorted(tmp_path.glob("*.png"))}
    captions = dict(zip(images, map(world.caption, scenes), strict=True))
    family = load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))
    monkeypatch.setattr(with_base, "MINUTES", -1)
    monkeypatch.setattr(with_base, "LEAST", 2)
    told: list[object] = []
    assert with_base.captions_exchanged(family, images, captions, told.append) == []
    assert len(told) == 2 and "exchanged captions are not looked for: it would take" in str(told[-1])


@pytest.mark.parametrize(("count", "sizes"), [(10, [10]), (32, [32]), (33, [16, 17]), (100, [25] * 4)])
def test_large_sets_are_looked_at_in_parts_of_neighbours(count: int, sizes: list[int]) -> None:
    names = [f"{i:03d}" for i in range(count)]
    parts = with_base.neighbours(names)
    assert [len(part) for part in parts] == sizes and [name for part in parts for name in part] == names


def test_planted_sets_hold_what_they_say() -> None:
    for number in range(8):
        one = sets.drawn("tune", number)
        order = sets.planted(one)
        moved = [i for i, j in enumerate(order) if i != j]
        assert 2 <= len(moved) <= 0.25 * len(order) and sorted(order) == list(range(len(order)))
