"""Bases in ComfyUI's int8: codes with a scale beside them, turned or not. What they stand for is worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import tiny_flux2
from lora_scripts.cli import main
from lora_scripts.families.black_forest import flux2_layout as layout
from lora_scripts.families.flux2.check import FILES
from lora_scripts.formats.comfy import turned_together

SEED = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
MADE_FOR = {"modelspec.resolution": "64x64"}
KEYS = ("img_attn.qkv.weight", "linear1.weight", "img_mlp.2.weight")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2.write_base(tmp_path_factory.mktemp("flux2") / "base.safetensors")


def told(form: str = "int8_tensorwise", **more: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps({"format": form, **more}).encode()), dtype=torch.uint8).clone()


def in_int8(
    tensors: dict[str, torch.Tensor], size: int, *, by_row: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """The file in int8, and by key what it stands for, float64."""
    made, wanted = dict(tensors), {}
    turn = SEED
    while len(turn) < size:
        turn = np.kron(turn, SEED)
    np.testing.assert_allclose(turn @ turn, np.eye(len(turn)), atol=1e-12)
    for key in [key for key in tensors if key.endswith(KEYS)]:
        weight = tensors[key].double().numpy()
        groups = weight.reshape(len(weight), -1, size or weight.shape[1])
        turned = (groups @ turn.T if size else groups).reshape(weight.shape)
        scale = np.abs(turned).max(1, keepdims=True) / 127 if by_row else np.abs(turned).max() / 127
        scale = np.float32(scale)
        codes = np.round(turned / scale)
        whole = (codes * scale.astype(np.float64)).reshape(groups.shape)
        wanted[key] = (whole @ turn if size else whole).reshape(weight.shape)
        stem = key.removesuffix(".weight")
        made[key] = torch.tensor(codes, dtype=torch.int8)
        made[f"{stem}.weight_scale"] = torch.tensor(scale, dtype=torch.float32)
        made[f"{stem}.comfy_quant"] = told(**({"convrot": True, "convrot_groupsize": size} if size else {}))
    assert len(wanted) >= 3
    return made, wanted


@pytest.mark.parametrize(("size", "by_row"), [(0, True), (0, False), (4, True), (16, True)])
def test_codes_stand_for_what_they_were_rounded_from(base: Path, tmp_path: Path, size: int, by_row: bool) -> None:
    tensors = load_file(base)
    made, wanted = in_int8(tensors, size, by_row=by_row)
    save_file(made, tmp_path / "int8.safetensors")
    FILES.check(tmp_path / "int8.safetensors", False)
    model = FILES.load(tmp_path / "int8.safetensors", torch.float32)
    plain = FILES.load(base, torch.float32)
    rows = [row for row in layout.rows(FILES.layout_at(base)) if row.ldm in wanted]
    assert len(rows) > len(wanted)  # q, k and v are one in the file
    for row in rows:
        whole = torch.tensor(wanted[row.ldm])
        share = whole if row.share is None else whole[row.share.rows(len(whole))]
        got = model.get_parameter(row.hf)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), share, rtol=1e-5, atol=1e-6)
        off = (got - plain.get_parameter(row.hf)).norm() / got.norm()
        assert 1e-4 < off < 0.02  # rounded, and no more


def test_a_base_in_int8_is_trained(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = in_int8(load_file(base), 16)
    save_file({f"model.diffusion_model.{key}": t for key, t in made.items()}, tmp_path / "int8.safetensors", MADE_FOR)
    keys = {"targets": "['*to_q']", "epochs": 1, **tiny_flux2.beside(base.parent)}
    config = tiny.write_config(
        tmp_path, base_model=tmp_path / "int8.safetensors", train_data_dir=data, output_dir=tmp_path / "out", **keys
    )
    assert main(["train", "--config", str(config)]) == 0
    assert "verified: " in capsys.readouterr().out
    merged = ["--base", str(tmp_path / "int8.safetensors"), "--output", str(tmp_path / "merged.safetensors")]
    assert main(["merge", *merged, str(tmp_path / "out" / "out.safetensors")]) == 2
    assert "have a scale beside them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        (told("nvfp4"), "the format nvfp4"),
        (told(convrot=True, convrot_groupsize=32), "groups of 32, no power of 4"),
        (told(convrot=True, convrot_groupsize=1024), "32 inputs turned in groups of 1024"),
        (torch.zeros(3, dtype=torch.uint8), "a format that is not told"),
    ],
)
def test_what_is_not_read_is_said_before_anything_is_loaded(
    base: Path, data: Path, tmp_path: Path, beside: torch.Tensor, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made, wanted = in_int8(load_file(base), 0)
    made[min(wanted).removesuffix(".weight") + ".comfy_quant"] = beside
    save_file(made, tmp_path / "int8.safetensors")
    config = tiny.write_config(
        tmp_path,
        base_model=tmp_path / "int8.safetensors",
        train_data_dir=data,
        output_dir=tmp_path / "out",
        **tiny_flux2.beside(base.parent),
    )
    assert main(["train", "--config", str(config)]) == 2
    err = capsys.readouterr().err
    assert said in err and min(wanted) in err and "give the bf16, fp16 or fp8 version" in err


def test_groups_are_powers_of_4() -> None:
    for size in (4, 16, 64, 256, 1024):
        assert (
            turned_together(
                json.dumps({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": size}).encode()
            )
            == size
        )
    assert turned_together(b'{"format": "int8_tensorwise", "convrot": true}') == 256  # as ComfyUI has it
    assert turned_together(b'{"format": "int8_tensorwise"}') == 0
