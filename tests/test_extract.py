"""`lora-scripts extract`: a known difference comes back, with its rank; rounding does not count as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

import tiny
from blocks import delta, mistake, random_lora, run, save
from lora_scripts.adapters.algebra import extract as extracting
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.loras import file, metadata
from lora_scripts.loras.file import read


@pytest.fixture(scope="module")
def known(base: Path, family: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a LoRA of rank 8 in every layer, the base with it)."""
    folder = tmp_path_factory.mktemp("known")
    lora = save(folder / "lora.safetensors", random_lora(family, 8, 4.0, 1))
    run("merge", f"{lora}:0.8", "--base", base, "--output", folder / "tuned.safetensors")
    return lora, folder / "tuned.safetensors"


def test_a_known_rank_8_is_found_as_rank_8(
    base: Path, known: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, tuned = known
    output = tmp_path / "found.safetensors"
    argv = ["extract", "--base", base, "--tuned", tuned, "--conv", "--output", output]
    run(*argv, "--precision", "fp32", "--json")
    told = json.loads(capsys.readouterr().out)
    wanted, found = read(lora).weights, read(output).weights
    assert set(told["effective_ranks"].values()) == {8} and told["rank"] == 8 and told["elsewhere"] == {}
    assert found.keys() == wanted.keys() and any(path.startswith("text_encoder.") for path in found)
    for path, w in wanted.items():
        exact = delta(w, 0.8)
        assert (delta(found[path]) - exact).abs().max() < 1e-5 * exact.abs().max(), path
    values = file.read(output).metadata
    assert values["ss_sd_model_name"] == base.name
    assert values["ss_new_sd_model_hash"] == model_hashes(base).sha256
    names = [row["name"] for row in json.loads(values[metadata.MADE_FROM])]
    assert (
        names == [base.name, tuned.name] and values["ss_network_dim"] == "8" and "conv_dim" in values["ss_network_args"]
    )


def test_rank_and_energy_keep_the_best(
    base: Path, known: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["extract", "--base", base, "--tuned", known[1], "--precision", "fp32", "--json", "--output"]
    run(*argv, tmp_path / "rank.safetensors", "--rank", "3")
    three = json.loads(capsys.readouterr().out)
    run(*argv, tmp_path / "energy.safetensors", "--energy", "0.6")
    share = json.loads(capsys.readouterr().out)
    wanted, cut, part = (
        read(known[0]).weights,
        *(read(tmp_path / f"{n}.safetensors").weights for n in ("rank", "energy")),
    )
    convs = ("conv1", "conv2", ".conv")
    assert three["rank"] == 3 and not any(path.endswith(convs) for path in cut)
    left = sum(path.endswith(convs) for path in wanted)
    assert len(three["elsewhere"]) == left == len(wanted) - len(cut)  # told, not passed over
    for path in list(cut)[::20]:
        u, s, vt = torch.linalg.svd(delta(wanted[path], 0.8), full_matrices=False)
        torch.testing.assert_close(delta(cut[path]), (u[:, :3] * s[:3]) @ vt[:3], rtol=1e-3, atol=1e-5)
        shares = (s**2).cumsum(0) / (s**2).sum()
        ranks = int((torch.linalg.svdvals(delta(part[path])) > 1e-5 * s[0]).sum())
        assert ranks == int((shares < 0.6).sum()) + 1
    assert share["worst_energy_kept"] >= 0.6


def test_a_folder_against_a_file(base: Path, known: tuple[Path, Path], tmp_path: Path) -> None:
    """The base as diffusers writes it, the tuned one as a single file."""
    unet, vae, text = tiny.models()
    for name, model in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        model.save_pretrained(tmp_path / "base" / name)
    output = tmp_path / "x.safetensors"
    run("extract", "--base", tmp_path / "base", "--tuned", known[1], "--precision", "fp32", "--output", output)
    wanted, found = read(known[0]).weights, read(output).weights
    assert all((delta(w) - delta(wanted[p], 0.8)).abs().max() < 1e-5 for p, w in found.items()) and len(found) > 150


def test_rounding_is_no_difference(
    base: Path, known: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = {key: value.half() for key, value in load_file(base).items()}
    io.save_safetensors(tmp_path / "half.safetensors", half)
    told = mistake(
        capsys, "extract", "--conv", "--base", base, "--tuned", tmp_path / "half.safetensors", "--output",
        tmp_path / "x.safetensors",
    )  # fmt: skip
    assert "do not differ in any layer" in told and not (tmp_path / "x.safetensors").exists()
    tuned = {key: value.half() for key, value in load_file(known[1]).items()}
    tuned["first_stage_model.decoder.conv_out.bias"] += 1
    tuned["model.diffusion_model.out.0.bias"] += 0.01
    io.save_safetensors(tmp_path / "tuned.safetensors", tuned)
    argv = ["extract", "--base", tmp_path / "half.safetensors", "--tuned", tmp_path / "tuned.safetensors", "--conv"]
    run(*argv, "--output", tmp_path / "x.safetensors", "--json")
    got = json.loads(capsys.readouterr().out)
    assert set(got["effective_ranks"].values()) == {8}
    assert set(got["elsewhere"]) == {"first_stage_model.decoder.conv_out.bias", "model.diffusion_model.out.0.bias"}
    run(*argv, "--output", tmp_path / "x.safetensors", "--overwrite")
    out = capsys.readouterr().out
    assert "1 other weights differ too" in out and "the VAE differs too" in out


def test_noise_is_what_rounding_gives() -> None:
    """Against rounding itself: its largest singular value lies below the estimate, and not far below."""
    g = torch.Generator().manual_seed(0)
    for shape in ((64, 64), (320, 40), (48, 16, 3, 3)):
        exact = 0.05 * torch.randn(shape, generator=g, dtype=torch.float64)
        for dtype in (torch.float16, torch.bfloat16):
            rounded = exact.to(dtype)
            error = torch.linalg.svdvals((rounded.double() - exact).flatten(1))[0].item()
            assert error < extracting.noise(rounded, exact) < 2.5 * error
    steps = extracting.step(torch.tensor([1.0, 1.5, 0.3, 0.0], dtype=torch.float16))
    near = torch.nextafter(torch.tensor([1.0, 1.5, 0.25, 0.0]).half(), torch.tensor(9.0).half())
    assert torch.equal(steps, near.double() - torch.tensor([1.0, 1.5, 0.25, 0.0], dtype=torch.float64))


def test_the_second_text_encoder_of_sdxl_gets_whole_blocks() -> None:
    one = random_like(4)
    made = extracting.missing_attention(
        {
            "text_encoder_2.encoder.layers.3.self_attn.q_proj": one,
            "text_encoder.encoder.layers.3.self_attn.q_proj": one,
        },
        {f"text_encoder_2.encoder.layers.3.self_attn.{n}_proj": (4, 4) for n in ("q", "k", "v", "out")},
    )
    assert {path.rpartition(".")[2] for path in made} == {"k_proj", "v_proj", "out_proj"} and len(made) == 3
    assert not any(delta(w).any() for w in made.values())


def random_like(size: int) -> LoraWeights:
    return LoraWeights(torch.randn(2, size), torch.randn(size, 2), 2.0)


def test_mistakes(base: Path, known: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"

    def told(one: Path, two: Path, *more: object) -> str:
        return mistake(capsys, "extract", "--base", one, "--tuned", two, "--output", out, *more)

    assert "this is a LoRA" in told(base, known[0])
    assert "do not differ in any layer" in told(base, base)
    other = dict(load_file(base))
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    other[key] = torch.zeros(64, 32)
    io.save_safetensors(tmp_path / "other.safetensors", other)
    assert "is [64, 32] here and [64, 64] in base.safetensors" in told(base, tmp_path / "other.safetensors")
    assert isinstance(tiny.models()[0], UNet2DConditionModel)
    out.write_bytes(b"mine")
    assert "already exists" in told(base, known[1]) and out.read_bytes() == b"mine"
