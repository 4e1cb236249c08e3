"""Metadata changed on a file whose tensors stay as they are, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lora_files
from lora_files import tensors
from lora_scripts.cli import main
from lora_scripts.formats.hashes import with_hashes
from lora_scripts.formats.io import save_safetensors
from lora_scripts.loras import private
from lora_scripts.workshop import reheader

FACTS = {
    "ss_output_name": "neon",
    "ss_v2": "False",
    "ss_base_model_version": "sd_v1",
    "ss_network_dim": "4",
    "ss_session_id": "123456",
    "ss_training_started_at": "1700000000.0",
    "modelspec.date": "2023-11-14T22:13:20",
    "ot_config": json.dumps({"workspace_dir": "C:/Users/ada/run", "samples": [{"prompt": "holiday"}]}),
    "ss_tag_frequency": json.dumps({"10_my holiday": {"neon": 3}}),
    "ss_dataset_dirs": json.dumps({"10_my holiday": {"n_repeats": 10, "img_count": 5}}),
    "ss_datasets": json.dumps([{"image_dir": "/home/ada/pictures/holiday"}]),
    "ss_sd_model_name": "/home/ada/models/v1-5 pruned.safetensors",
    "ss_vae_name": "C:\\Users\\ada\\vae.pt",
    "ss_optimizer": "torch.optim.AdamW(weight_decay=0.01,betas=(0.9, 0.99))",
    "ss_network_args": json.dumps({"init": "D:\\lora\\first.safetensors", "ratio": "1/2"}),
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.usage_hint": "see https://example.org/a/b and ~/notes/neon.txt",
}


def file(folder: Path, facts: dict[str, str] = FACTS, megabytes: int = 0) -> Path:
    found = tensors(lora_files.weights())
    if megabytes:
        found["filler"] = torch.randn(megabytes << 18)
    save_safetensors(folder / "x.safetensors", found, with_hashes(found, facts))
    return folder / "x.safetensors"


def told(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as handle:
        return dict(handle.metadata())


def body(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def run(*words: object) -> None:
    assert main(["metadata", *map(str, words)]) == 0


@pytest.mark.parametrize("megabytes", [0, 3])
def test_tensors_stay_and_hashes_are_true(megabytes: int, tmp_path: Path) -> None:
    path = file(tmp_path, megabytes=megabytes)
    before, start = told(path), body(path)
    run(path, "--set", "modelspec.title=Neon nights", "modelspec.author=Ada", "ss_session_id=")
    after, data = told(path), path.read_bytes()
    assert body(path) == start
    assert after["sshs_model_hash"] == before["sshs_model_hash"] == hashlib.sha256(start).hexdigest()
    assert after["sshs_legacy_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert not megabytes or after["sshs_legacy_hash"] != before["sshs_legacy_hash"]  # the window has moved
    assert after["modelspec.title"] == "Neon nights" and "ss_session_id" not in after
    hashes = ("sshs_model_hash", "sshs_legacy_hash")
    rest = {key: value for key, value in after.items() if not key.startswith("modelspec.") and key not in hashes}
    assert rest == {k: v for k, v in FACTS.items() if not k.startswith("modelspec.") and k != "ss_session_id"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_header_that_reaches_into_the_window_gets_no_legacy_hash(tmp_path: Path) -> None:
    path = file(tmp_path, megabytes=1)
    reheader.rewrite(path, tmp_path / "y.safetensors", {"long": "x" * (1 << 20)})
    assert "sshs_legacy_hash" not in told(tmp_path / "y.safetensors")
    assert body(tmp_path / "y.safetensors") == body(path)
    reheader.rewrite(tmp_path / "y.safetensors", tmp_path / "z.safetensors", told(path))
    assert (tmp_path / "z.safetensors").read_bytes() == path.read_bytes()


def test_strip_keeps_what_programs_read(tmp_path: Path) -> None:
    path = file(tmp_path)
    run(path, "--strip", "--output", tmp_path / "y.safetensors")
    wanted = {"ss_output_name", "ss_v2", "ss_base_model_version", "ss_network_dim", "ss_network_args"}
    assert set(told(tmp_path / "y.safetensors")) == wanted | {
        "modelspec.architecture",
        "sshs_model_hash",
        "sshs_legacy_hash",
    }
    assert told(path)["ss_session_id"] == "123456"  # the first file stays as it was


def test_private_leaves_nobody_to_be_found(tmp_path: Path) -> None:
    path = file(tmp_path)
    run(path, "--private")
    after = told(path)
    text = json.dumps(after)
    assert not any(
        word in text for word in ("ada", "holiday", "Users", "/home", "123456", "1700000000", "2023-11-14", "notes/")
    )
    assert after["ss_sd_model_name"] == "v1-5 pruned.safetensors" and after["ss_vae_name"] == "vae.pt"
    assert after["ss_optimizer"] == FACTS["ss_optimizer"] and after["ss_output_name"] == "neon"
    assert json.loads(after["ss_network_args"]) == {"init": "first.safetensors", "ratio": "1/2"}
    assert after["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert after["modelspec.usage_hint"] == "see https://example.org/a/b and neon.txt"


@pytest.mark.parametrize(
    "text",
    [
        "stable-diffusion-xl-v1-base/lora",
        "a/b",
        "1.0/2.0",
        "https://github.com/Stability-AI/generative-models",
        "512x512",
    ],
)
def test_what_is_no_path_stays(text: str) -> None:
    assert private.make_private({"x": text}) == {"x": text}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("C:\\Users\\O'Brien\\models\\sd.safetensors", "sd.safetensors"),
        ("C:\\Users\\Smith, Ada\\models\\sd.safetensors", "sd.safetensors"),
        ("['C:/Users/O'Brien/a.txt', 'b.txt']", "['a.txt', 'b.txt']"),
        ("/home/ada/a.png, /home/ada/b.png", "a.png, b.png"),
    ],
)
def test_folders_with_odd_names_go_too(value: str, wanted: str) -> None:
    assert private.make_private({"x": value}) == {"x": wanted}


def test_the_command_shows_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, FACTS | {"long": "y" * 500})
    before = path.read_bytes()
    run(path)
    shown = capsys.readouterr().out
    assert "ss_output_name = neon\n" in shown and "… (500 letters)" in shown and path.read_bytes() == before
    mistakes = {
        (str(path), "--set", "title"): "must be key=value",
        (str(path), "--set", "sshs_model_hash=1"): "this hash is computed from the file",
        (str(path), "--output", str(tmp_path / "y.safetensors")): "--output does nothing without",
        (str(tmp_path), "--strip"): "is a folder",
        (str(tmp_path / "none.safetensors"), "--strip"): "does not exist",
    }
    for words, message in mistakes.items():
        assert main(["metadata", *words]) == 2
        assert message in capsys.readouterr().err
    assert path.read_bytes() == before
