"""A run that stops and goes on equals one that never stopped, to the last bit, whatever is switched on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from runs import stopped

MATRIX = {
    f"accumulation {accumulation}, ema {ema}": {
        "gradient_accumulation": accumulation,
        **({"ema_decay": ema} if ema else {}),
    }
    for accumulation, ema in ((1, 0), (2, 0.9))
}
MIXED = {
    "dora with prodigy": {"adapter": "dora", "optimizer": "prodigy", "learning_rate": 1},
    "pissa with lion": {"adapter": "pissa", "optimizer": "lion", "ema_decay": 0.5, "lr_schedule": "polynomial"},
    "loha with schedule_free": {"adapter": "loha", "optimizer": "schedule_free", "gradient_accumulation": 2},
    "lokr with adafactor": {
        "adapter": "lokr",
        "optimizer": "adafactor",
        "lr_schedule": "cosine_restarts",
        "lora_alpha": 4,
    },
    "oft with restarts": {"adapter": "oft", "lr_schedule": "cosine_restarts", "lr_cycles": 2},
    "held to the base": {
        **{"preserve_weight": 2, "preserve_every": 2, "trigger_word": "gradient", "gradient_accumulation": 2},
        **{"train_text_encoder": "true", "shuffle_tags": "true", "flip": "true", "ema_decay": 0.9},
    },
    "every kind of chance": {
        **{"multires_noise_iterations": 3, "input_perturbation": 0.1, "timestep_sampling": "logit_normal"},
        **{"loss": "huber", "tag_dropout": 0.3, "caption_dropout": 0.2, "lora_dropout": 0.1, "flip": "true"},
        **{"random_crop": "true", "shuffle_tags": "true", "mask_alpha": "true", "rank_stabilised": "true"},
        **{"train_text_encoder": "true", "text_encoder_stop": 4},
    },
}


@pytest.fixture(scope="module")
def cut_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures with transparency, and captions of several tags."""
    folder = tiny.write_pictures(tmp_path_factory.mktemp("cut") / "data")
    for path in folder.glob("*.png"):
        image = Image.open(path).convert("RGB")
        image.putalpha(Image.radial_gradient("L").resize(image.size))
        image.save(path)
    return folder


def state(folder: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, object]]:
    """What is kept of a run, whatever its folder is called."""
    at = folder / "state" / f"step-{step:08d}"
    return (
        load_file(at / "lora.safetensors"),
        load_file(at / "optimizer.safetensors"),
        json.loads((at / "run.json").read_text("utf-8")) | {"name": ""},
    )


def compare(keys: dict[str, object], base: Path, data: Path, folder: Path, breaks: list[int], end: int) -> None:
    values = {"batch_size": 1, "epochs": 3, "targets": tiny.SOME, "seed": 5, "save_steps": 100, "learning_rate": 0.003}
    values |= {"base_model": base, "train_data_dir": data, "cache_dir": folder / "cache", **keys}
    if values.get("adapter") in ("loha", "lokr", "oft"):
        pytest.importorskip("lycoris")
    config = tiny.write_config(folder, **values)
    stopped(config, end, f"output_dir={folder / 'whole'}")
    whole = state(folder / "whole", end)
    assert any(tensor.any() for name, tensor in whole[0].items() if "down" not in name)
    for at in breaks:
        out = folder / f"broken-{at}"
        stopped(config, at, f"output_dir={out}")
        stopped(config, end, f"output_dir={out}", resume=True)
        broken = state(out, end)
        for mine, theirs in zip(broken[:2], whole[:2], strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert broken[2] == whole[2]


@pytest.mark.parametrize("name", MATRIX)
def test_broken_in_mid_epoch_and_at_its_end(name: str, base: Path, data: Path, tmp_path: Path) -> None:
    """Five batches to an epoch: with two a step, an epoch ends after step 3."""
    one = MATRIX[name]["gradient_accumulation"] == 1
    compare(MATRIX[name], base, data, tmp_path, [3, 5] if one else [2, 3], 7 if one else 5)


LONG = ("pissa with lion", "lokr with adafactor", "oft with restarts")
"""The adapters of these go on exactly in test_adapters, and the states of these optimizers are only moments."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in MIXED])
def test_broken_with_adapters_optimizers_and_chance(name: str, base: Path, cut_out: Path, tmp_path: Path) -> None:
    for package in ("prodigyopt", "lion_pytorch", "schedulefree"):
        pytest.importorskip(package)
    compare(MIXED[name], base, cut_out, tmp_path, [2], 5)


def test_two_runs_of_one_config_are_equal(base: Path, data: Path, tmp_path: Path) -> None:
    keys = {"targets": tiny.SOME, "precision": "bf16", "batch_size": 1, "cache_dir": tmp_path / "cache"}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    for name in ("a", "b"):
        stopped(config, 3, f"output_dir={tmp_path / name}")
    a, b = (state(tmp_path / name, 3) for name in ("a", "b"))
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0]) and a[2] == b[2]
