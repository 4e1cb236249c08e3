"""Memory does not grow with the pictures: what is encoded is read for each step, a step ahead, and is the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from lora_scripts.data.cache import Cache
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Stepped
from lora_scripts.formats import io
from lora_scripts.run import story
from lora_scripts.run.configs import load_config
from lora_scripts.run.preflight import preflight
from lora_scripts.train.ahead import ahead
from lora_scripts.train.encoded import Masks, Unfed
from lora_scripts.train.feed import Feed
from lora_scripts.train.memorised import STRIP, spacing
from runs import stopped
from test_feed import same
from toy import Toy, feed, samples

ALL = 1 << 30
LATENTS = 2 * 3 * 10 * 6 * 4
"""Bytes of a toy's latents, mean and deviation, of 80 x 48 pixels in float32."""


class Watched(Cache):
    """Notes which keys are read, and by whom."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder, io.write_atomic, keep)
        self.got: list[str] = []
        self.by: set[str] = set()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        self.got.append(key)
        self.by.add(threading.current_thread().name)
        return super().get(key)


def filled(folder: Path, count: int, keep: int, family: Toy | None = None, **keys: Any) -> tuple[Feed, Watched]:
    made = feed(family or Toy(), samples(folder / f"{count}", count), **keys)
    cache = Watched(folder / "cache", keep)
    made.fill(cache, lambda *told: None)
    return made, cache


def blot(sample: object) -> Image.Image:
    return Image.fromarray(np.arange(96 * 64, dtype=np.uint8).reshape(64, 96))


@pytest.mark.parametrize("keep", [0, 4 * LATENTS])
def test_batches_are_the_same_wherever_they_come_from(keep: int, tmp_path: Path) -> None:
    """In memory, or read when they are needed: views, masks, captions known and new ones."""
    keys: dict[str, Any] = {"flip": True, "caption_dropout": 0.3, "shuffle_tags": True, "accumulation": 2}
    keys["masks"] = Masks(blot, background=0.1)
    inside, memory = filled(tmp_path, 7, ALL, **keys)
    outside, cache = filled(tmp_path, 7, keep, **keys)
    assert memory.held > 14 * LATENTS and cache.held <= keep
    total = 3 * inside.steps_per_epoch
    for first in (0, 3):
        for (_, wanted), (_, got) in zip(inside.steps(first, total), outside.steps(first, total), strict=True):
            assert all(map(same, wanted, got)) and len(wanted) == len(got)
            for one, other in zip(wanted, got, strict=True):
                assert one.masks is not None and other.masks is not None and torch.equal(one.masks, other.masks)
    assert any(name.startswith("ThreadPool") for name in cache.by)


def test_what_is_held_is_the_same_of_few_and_many(tmp_path: Path) -> None:
    held = []
    for count in (4, 8, 32):
        made, cache = filled(tmp_path, count, 5 * LATENTS // 2, cache_text=False)
        for _ in made.steps(0, made.steps_per_epoch):
            pass
        held.append(cache.held)
    assert held == [2 * LATENTS] * 3


def test_a_start_reads_nothing_and_a_step_what_it_needs(tmp_path: Path) -> None:
    filled(tmp_path, 12, 0)
    made, cache = filled(tmp_path, 12, 3 * LATENTS)
    assert not cache.got and not cache.held
    steps: Iterator[object] = made.steps(0, 6)
    next(steps)
    next(steps)  # the third may be under way
    assert len(set(cache.got)) <= 3 * 4
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == 1 or not any(
        thread.name.startswith("ThreadPool") for thread in threading.enumerate()
    )


@pytest.mark.parametrize("damage", ["a bit", "gone", "empty"])
def test_a_damaged_entry_is_found_when_it_is_read_and_made_again(damage: str, tmp_path: Path) -> None:
    """A start that only looks for it does not see it; the step does, and trains on what it should have been."""
    wanted = [step for _, step in filled(tmp_path, 6, ALL)[0].steps(0, 3)]
    toy = Toy()
    made, cache = filled(tmp_path, 6, 0, toy)
    picture = made.pictures[3]
    keys = [
        made.encoded._latents_key(picture, picture.views[0]),
        made.encoded.said(3, 0, picture.sample.caption).key(toy.text),
    ]
    whole = [cache.path(key).read_bytes() for key in keys]
    for key in keys:
        data = bytearray(cache.path(key).read_bytes())
        data[-3] ^= 1
        cache.path(key).write_bytes(b"" if damage == "empty" else data)
        if damage == "gone":
            cache.path(key).unlink()
    assert toy.encoded == []
    for (_, got), step in zip(made.steps(0, 3), wanted, strict=True):
        assert all(map(same, got, step))
    assert sorted(toy.encoded) == sorted(["picture", picture.sample.caption])
    assert [len(cache.path(key).read_bytes()) for key in keys] == [len(data) for data in whole]
    assert all(cache.get(key) is not None for key in keys)


def test_what_can_neither_be_read_nor_made_again_is_told_by_name(tmp_path: Path) -> None:
    made, cache = filled(tmp_path, 6, 0)
    picture = made.pictures[3]
    key = made.encoded._latents_key(picture, picture.views[0])
    cache.path(key).unlink()
    picture.sample.path.write_bytes(made.pictures[2].sample.path.read_bytes())
    with pytest.raises(Unfed, match=r"3\.png: has changed since this start looked at it"):
        list(made.steps(0, 3))
    assert cache.get(key) is None


def test_a_run_that_cannot_be_fed_saves_what_it_has_learnt_and_going_on_is_exact(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run an entry and its picture go; the other run had all in memory and never stopped."""
    keys = {"targets": "['*.mid_block.*attn2*']", "save_steps": 100, "epochs": 2, "val_split": 0}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    shared = f"cache_dir={tmp_path / 'cache'}"
    whole = stopped(config, 5, shared, f"output_dir={tmp_path / 'whole'}")
    monkeypatch.setattr(story, "KEPT", 0)
    loaded = load_config(config, [shared, f"output_dir={tmp_path / 'broken'}"])
    ready = preflight(loaded, resume=False)
    hidden = tmp_path / "hidden"

    def sink(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            data.rename(hidden)
            for entry in (tmp_path / "cache").rglob("*.safetensors"):
                entry.write_bytes(entry.read_bytes()[:-1])

    try:
        with pytest.raises(UserError, match=r"\.png: .*; step [23] is saved"):
            story.train(loaded, ready.folder, ready.samples, resume=False, sink=sink)
    finally:
        hidden.rename(data)
    again = stopped(config, 5, shared, f"output_dir={tmp_path / 'broken'}", resume=True)
    assert whole.state.losses == again.state.losses
    for name, p in whole.model.weights().items():
        assert torch.equal(again.model.weights()[name], p), name


def test_work_ahead_keeps_its_order_and_its_place() -> None:
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n == 5:
            raise ValueError("five")
        return n * n

    done = []
    with pytest.raises(ValueError, match="five"):
        for n, square in ahead(range(9), work, most=2):
            done.append((n, square))
            assert len(begun) <= n + 3
    assert done == [(n, n * n) for n in range(5)] and max(begun) <= 7
    assert list(ahead([], work)) == []


def test_distances_of_many_pictures_are_taken_in_strips() -> None:
    rows = torch.randn(2 * STRIP + 100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = (rows[:, None] - rows[None]).norm(dim=2).fill_diagonal_(torch.inf)
    assert spacing(rows) == pytest.approx(apart.min(1).values.median().item(), rel=1e-6)
