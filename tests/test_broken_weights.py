"""Weights that cannot be weights: NaN, infinity, a download that did not end. Named by file and tensor."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from conftest import Finished
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.formats import io
from lora_scripts.formats.numbers import finite, sound_digest

NAMES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
}


@pytest.mark.parametrize("dtype", NAMES)
def test_finite_is_torchs_answer_for_every_pattern_of_bits(dtype: str) -> None:
    kind = NAMES[dtype]
    if kind.itemsize <= 2:
        whole = {1: torch.uint8, 2: torch.int16}[kind.itemsize]
        patterns = torch.arange(2 ** (8 * kind.itemsize)).to(torch.int32).to(whole).view(kind)
    else:
        exact = torch.tensor([0.0, -0.0, 1.5, torch.finfo(kind).max, torch.finfo(kind).smallest_normal, 1e-310])
        patterns = torch.cat([exact.to(kind), torch.tensor([float("inf"), float("-inf"), float("nan")], dtype=kind)])
    for number in patterns.split(1):
        assert finite(io.tensor_bytes(number), dtype) == bool(torch.isfinite(number.float()).all())
    good = patterns[torch.isfinite(patterns.float() if kind.itemsize < 4 else patterns)]
    assert finite(io.tensor_bytes(good), dtype) and not finite(io.tensor_bytes(patterns), dtype)
    assert finite(b"", dtype) and finite(b"\xff" * 8, "I64")


def matrices() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(64, 64), "b.bias": torch.zeros(5000), "b.weight": torch.randn(100, 64)}


def told(path: Path, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        sound_digest(path, **more)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_sound_file_gives_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    padded = torch.cat([torch.randn(40, 64), torch.zeros(60, 64)])  # a table of words may end in rows of zeros
    for tensors in (matrices(), {**matrices(), "z.weight": padded}, {"a": torch.randn(3), "z": torch.zeros(9000)}):
        save_file(tensors, path)
        assert sound_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    path, tensors = tmp_path / "x.safetensors", {name: t.to(dtype) for name, t in matrices().items()}
    tensors["a.weight"][63, 63] = float("nan")
    save_file(tensors, path)
    assert told(path).startswith(f"{path}: a tensor holds numbers that are not finite (NaN or infinity): a.weight; ")
    assert sound_digest(path, lambda name: name == "a.weight")
    tensors["b.bias"][0] = float("-inf")
    save_file(tensors, path)
    assert "2 tensors hold numbers that are not finite (NaN or infinity): a.weight, b.bias; download" in told(path)


@pytest.mark.parametrize(("share", "name"), [(0.1, "b.weight"), (0.5, "b.weight"), (0.9, "a.weight")])
def test_a_download_that_did_not_end_is_named(tmp_path: Path, share: float, name: str) -> None:
    """Into a file of the right size, which the system fills with zeros."""
    path = tmp_path / "x.safetensors"
    save_file(matrices(), path)
    data = path.read_bytes()
    cut = int(len(data) * share) // 4 * 4 + 4
    path.write_bytes(data[:-cut] + bytes(cut))
    words = told(path)
    assert f" bytes are zeros, from {name} on: a download that was not finished; download it again" in words


# --- in a run ---------------------------------------------------------------------------------------------------------


def written(path: Path, base: Path, changes: Mapping[str, float]) -> Path:
    """The base with one number of some tensors set."""
    tensors = load_file(base)
    for name, value in changes.items():
        tensors[name].view(-1)[7] = value
    io.save_safetensors(path, tensors, {"modelspec.resolution": "64x64"})
    return path


BROKEN = {
    "model.diffusion_model.out.2.weight": "of the UNet",
    "first_stage_model.decoder.conv_out.weight": "of the decoder alone, which no step reads",
    "first_stage_model.encoder.conv_in.weight": "of the encoder",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": "of the text encoder",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_base_is_told_before_the_first_step(
    name: str, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = written(tmp_path / "broken.safetensors", base, {name: float("nan")})
    config = tiny.write_config(tmp_path, base_model=broken, train_data_dir=data)
    assert main(["train", "--config", str(config)]) == 2
    out = capsys.readouterr()
    assert out.err.startswith(f"error: {broken}: a tensor holds numbers that are not finite (NaN or infinity): {name};")
    assert "step 1/" not in out.out and out.err.count("\n") == 1


def test_a_base_with_zeros_at_its_end_is_told(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in (0.002, 0.02, 0.3):
        broken, whole = tmp_path / "broken.safetensors", base.read_bytes()
        cut = int(len(whole) * share)
        broken.write_bytes(whole[:-cut] + bytes(cut))
        config = tiny.write_config(tmp_path, base_model=broken, train_data_dir=data)
        assert main(["train", "--config", str(config)]) == 2
        assert f"{broken}: its last " in (words := capsys.readouterr().err) and words.count("\n") == 1


def test_what_nobody_reads_may_be_anything(base: Path, data: Path, tmp_path: Path) -> None:
    """A copy of averages; and the base's own VAE where another one is given."""
    broken = written(tmp_path / "broken.safetensors", base, {"first_stage_model.decoder.conv_out.weight": float("nan")})
    tensors = load_file(broken) | {"model_ema.decay": torch.full((1,), float("nan"))}
    io.save_safetensors(broken, tensors, {"modelspec.resolution": "64x64"})
    vae = {k: v for k, v in load_file(base).items() if k.startswith("first_stage_model.")}
    save_file(vae, tmp_path / "vae.safetensors")
    keys = {"base_model": broken, "train_data_dir": data, "vae": tmp_path / "vae.safetensors", "epochs": 1}
    config = tiny.write_config(tmp_path, targets="['*.mid_block.*attn2*']", **keys)
    assert main(["train", "--config", str(config)]) == 0


def test_broken_parts_of_a_folder_and_a_broken_vae_are_told(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in zip(("unet", "vae", "text_encoder"), tiny.models(), strict=True):
        model.save_pretrained(tmp_path / "base" / name)
    file = tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    written(file, file, {"decoder.conv_out.weight": float("inf")})
    config = tiny.write_config(tmp_path, base_model=tmp_path / "base", train_data_dir=data)
    capsys.readouterr()  # a library's bar, of writing the parts
    assert main(["train", "--config", str(config)]) == 2
    line = f"error: {file}: a tensor holds numbers that are not finite (NaN or infinity): decoder.conv_out.weight; "
    assert capsys.readouterr().err.startswith(line)
    for vae in (file, file.parent, file.parents[1]):
        assert main(["train", "--config", str(config), f"base_model={base}", f"vae={vae}"]) == 2
        assert capsys.readouterr().err.startswith(line)


def test_merge_refuses_a_broken_base_and_writes_nothing(
    finished: Finished, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both where the LoRA changes a weight and where the base is copied as it is."""
    changed = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight"
    for name in (changed, "first_stage_model.decoder.conv_out.weight"):
        broken = written(tmp_path / "broken.safetensors", base, {name: float("nan")})
        output = tmp_path / "merged.safetensors"
        argv = ["merge", "--base", str(broken), str(finished.lora), "--output", str(output)]
        assert main(argv) == 2
        assert (
            f"{broken}: a tensor holds numbers that are not finite (NaN or infinity): {name}" in capsys.readouterr().err
        )
        assert not output.exists() and not list(tmp_path.glob(".lora-scripts-*"))
    shutil.copy(base, broken)
    assert main(argv) == 0
