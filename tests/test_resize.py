"""`lora-scripts resize`: against a full decomposition of ΔW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks import delta, mistake, random_lora, run, save
from lora_scripts.adapters.algebra import resize
from lora_scripts.adapters.algebra.overlap import block_of
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.loras import file, metadata
from lora_scripts.loras.file import read

SAID = {
    "ss_tag_frequency": '{"a": {"b": 1}}',
    "ss_network_dim": "6",
    "sshs_model_hash": "old",
    "modelspec.hash_sha256": "0xold",
    "lora_adapter_metadata": "{}",
    "lora_scripts.alpha": "3.0",
    "modelspec.title": "Mine",
}


@pytest.fixture(scope="module")
def lora(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank 6; the middle block's singular values fall steeply, one of its layers is all zero."""
    weights = random_lora(family, 6, 3.0, 1)
    for path, w in weights.items():
        if ".mid_block" in path:
            w.up.mul_((0.2 ** torch.arange(6.0)).reshape(1, 6, *(1,) * (w.up.dim() - 2)))
    weights["unet.mid_block.attentions.0.proj_in"].up.zero_()
    return save(tmp_path_factory.mktemp("lora") / "lora.safetensors", weights, **SAID)


def test_to_a_rank(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "three.safetensors"
    run("resize", lora, "--rank", "3", "--output", output, "--json")
    told, before, after = json.loads(capsys.readouterr().out), read(lora).weights, read(output).weights
    assert {w.rank for w in after.values()} == {3} and len({w.alpha for w in after.values()}) == 1
    assert after.keys() == before.keys()
    kept = whole = 0.0
    for path, w in before.items():
        u, s, vt = torch.linalg.svd(delta(w), full_matrices=False)
        torch.testing.assert_close(delta(after[path]), (u[:, :3] * s[:3]) @ vt[:3], rtol=1e-4, atol=1e-6)
        assert after[path].down.shape[1:] == w.down.shape[1:]
        kept, whole = kept + (s[:3] ** 2).sum().item(), whole + (s**2).sum().item()
    assert told["energy_kept"] == pytest.approx(kept / whole) and told["rank_before"] == 6
    values = file.read(output).metadata
    assert values["ss_network_dim"] == "3" and values["ss_tag_frequency"] == SAID["ss_tag_frequency"]
    assert values["ss_output_name"] == values["modelspec.title"] == "three"
    assert not {"modelspec.hash_sha256", "lora_adapter_metadata", "lora_scripts.alpha"} & values.keys()
    assert values["sshs_model_hash"] == model_hashes(output).sshs_model_hash
    assert json.loads(values[metadata.MADE_FROM]) == [{"name": "lora.safetensors", "sha256": model_hashes(lora).sha256}]


def test_to_a_share_of_the_energy_block_by_block(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "most.safetensors"
    run("resize", lora, "--energy", "0.9", "--output", output, "--json")
    told, before, after = json.loads(capsys.readouterr().out), read(lora).weights, read(output).weights
    needed: dict[str, list[int]] = {}
    for path, w in before.items():
        s = torch.linalg.svdvals(delta(w))
        shares = (s**2).cumsum(0) / (s**2).sum() if s[0] else torch.ones(1)
        count = int((shares < 0.9).sum()) + 1 if s[0] else 0
        needed.setdefault(block_of(path), []).append(count)
        assert int((torch.linalg.svdvals(delta(after[path])) > 1e-5 * s[0]).sum()) == count
    assert {b: (r["least"], r["most"]) for b, r in told["blocks"].items()} == {
        b: (min(r), max(r)) for b, r in needed.items()
    }
    assert told["blocks"]["unet.mid_block"]["most"] == 1 < told["blocks"]["unet.up_blocks.1"]["least"]
    assert told["blocks"]["unet.mid_block"]["least"] == 0  # the layer of zeros
    assert {w.rank for w in after.values()} == {max(max(r) for r in needed.values())} == {told["rank"]}
    assert told["worst_energy_kept"] >= 0.9
    run("resize", lora, "--energy", "0.9", "--rank", "2", "--output", output, "--overwrite")
    assert {w.rank for w in read(output).weights.values()} == {2} and "energy kept" in capsys.readouterr().out


def test_what_rank_held_it_all_loses_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    path = "unet.mid_block.attentions.0.proj_in"
    thin = LoraWeights(torch.randn(2, 20, generator=g), torch.randn(30, 2, generator=g), 1.0)
    padded = {path: LoraWeights(thin.down.repeat(3, 1), thin.up.repeat(1, 3), 3.0)}
    made = resize.resize(padded, rank=None, energy=1.0)
    assert made.kept[path].rank == 2 and made.share == pytest.approx(1)
    torch.testing.assert_close(delta(made.weights[path]), delta(padded[path]), rtol=1e-9, atol=1e-9)


def test_mistakes(lora: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"
    assert "resize to what?" in mistake(capsys, "resize", lora, "--output", out)
    assert "not a LoRA" in mistake(capsys, "resize", base, "--rank", "2", "--output", out)
    assert "over what is read" in mistake(capsys, "resize", lora, "--rank", "2", "--output", lora, "--overwrite")
    assert "must be from" in mistake(capsys, "resize", lora, "--energy", "1.5", "--output", out)
    tensors = {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.ones(2, 2)}
    file.io.save_safetensors(tmp_path / "loha.safetensors", tensors)
    told = mistake(capsys, "resize", tmp_path / "loha.safetensors", "--rank", "2", "--output", out)
    assert "no whole LoHa, LoKr or OFT" in told
    assert not out.exists()
