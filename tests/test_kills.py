"""Runs that are killed at random moments, also while they resume, end as one that never was; `benchmarks/kills.py` has
more of them, with everything on and the report behind them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

import tiny
from lora_scripts.config.load import load_config
from lora_scripts.events import ignore
from lora_scripts.run import story
from lora_scripts.run.build import build_model
from lora_scripts.run.preflight import preflight
from runs import only_the_file


def ended(act: Callable[[], object], seconds: float) -> bool:
    """Whether a fork of this process did it in that time; else it is killed."""
    child, until = os.fork(), time.monotonic() + seconds
    if not child:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def end_of(out: Path) -> dict[str, bytes]:
    """The LoRA and the last state."""
    state = max((out / "state").glob("step-*"))
    return {path.name: path.read_bytes() for path in (*out.glob("*.safetensors"), *state.iterdir())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks and SIGKILL")
@pytest.mark.parametrize("runs", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_runs_end_as_one_that_was_not(runs: int, base: Path, tmp_path: Path) -> None:
    """Forks of a process that has the base loaded: the moments fall between the first look and the last file."""
    keys = {"targets": "['*mid_block*attn2*']", "batch_size": 1, "epochs": 1, "save_steps": 1, "keep_last": 1}
    keys |= {"ema_decay": 0.9, "lora_dropout": 0.2, "flip": True, "caption_dropout": 0.3, "val_split": 0}
    data = tiny.write_pictures(tmp_path / "data", 3)
    file = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, cache_dir=tmp_path / "cache", **keys)
    model = build_model(load_config(file), torch.device("cpu"), "fp32", {})

    def run(out: Path, resume: bool) -> None:
        config = load_config(file, [f"output_dir={out}"])
        ready = preflight(config, resume=resume)
        with mock.patch.multiple(story, build_model=lambda *_: model, finish=only_the_file, KEPT=0):
            story.train(config, ready.folder, ready.samples, resume=resume, sink=ignore)

    assert ended(lambda: run(tmp_path / "first" / "x", False), 60)  # it fills the cache
    begun = time.monotonic()
    assert ended(lambda: run(tmp_path / "whole" / "x", False), 60)
    length, wanted, chance, kills = time.monotonic() - begun, end_of(tmp_path / "whole" / "x"), random.Random(0), 0
    for number in range(runs):
        out, over = tmp_path / str(number) / "x", False
        while not over:
            resume = bool(list((out / "state").glob("step-*")))
            seconds = chance.uniform(0, length) if chance.random() < 0.5 else 60.0
            over = ended(lambda out=out, resume=resume: run(out, resume), seconds)  # type: ignore[misc]
            kills += not over
        assert end_of(out) == wanted and not list(out.rglob(".lora-scripts-*")), f"run {number}, after {kills} kills"
    assert kills
