"""What `inspect` says of good files, and of files with one thing wrong each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lora_files
from lora_files import FEW, KOHYA, MID, dense, tensors
from lora_scripts.cli import main
from lora_scripts.formats.hashes import model_hashes, with_hashes
from lora_scripts.loras import portrait
from lora_scripts.loras.consumers import a1111
from lora_scripts.workshop.inspect import report_of

Q = KOHYA[f"{MID}.attn1.to_q"]
FACTS = {"ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_dim": "4", "ss_network_alpha": "2.0"}


def lora(path: Path, found: dict[str, Tensor] | None = None, **facts: str) -> Path:
    found = tensors(lora_files.weights()) if found is None else found
    return lora_files.write(path, found, with_hashes(found, FACTS | facts))


def problems(path: Path) -> str:
    return " | ".join(report_of(path).problems)


def test_a_good_file(tmp_path: Path) -> None:
    report = report_of(lora(tmp_path / "x.safetensors"))
    assert (report.what, report.family, report.naming) == ("a LoRA", "Stable Diffusion 1.x", "kohya")
    assert report.lora is not None and len(report.lora.modules) == len(FEW)
    assert (report.lora.ranks, report.lora.alphas, report.lora.scales) == ([4], [2.0], [0.5])
    assert report.problems == [] and set(report.loads.values()) == {"yes"} and len(report.loads) == 7
    hashes = model_hashes(report.path)
    assert report.hashes["AutoV2"] == hashes.autov2 and report.hashes["AutoV3"] == hashes.autov3
    assert report.hashes["sshs_legacy_hash"] == hashes.sshs_legacy_hash


def test_norms_are_those_of_the_whole_matrix(tmp_path: Path) -> None:
    """Against ΔW itself and LAPACK's norms of it."""
    modules = lora_files.weights()
    found = report_of(lora(tmp_path / "x.safetensors")).lora
    assert found is not None
    by_name = {m.name: m for m in found.modules}
    for path, w in modules.items():
        matrix = dense(w).flatten(1)
        module = by_name[KOHYA[path]]
        assert module.frobenius == pytest.approx(float(torch.linalg.matrix_norm(matrix)), rel=1e-9)
        assert module.spectral == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-9)
    middle = {block.name: block for block in found.blocks}["mid_block"]
    inside = [dense(w) for path, w in modules.items() if "mid_block" in path]
    assert middle.modules == len(inside)
    assert middle.frobenius == pytest.approx(float(torch.cat([m.flatten() for m in inside]).norm()), rel=1e-9)
    assert [block.name for block in found.blocks] == ["text encoder", "down_blocks 0", "mid_block"]


def spoilt(change: dict[str, Tensor | None]) -> dict[str, Tensor]:
    found = tensors(lora_files.weights()) | change
    return {key: value for key, value in found.items() if value is not None}


FAULTS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "zeros": ({f"{Q}.lora_up.weight": torch.zeros(64, 4)}, f"1 module holds nothing but zeros, first {Q}"),
    "nan": ({f"{Q}.lora_up.weight": torch.full((64, 4), float("nan"))}, "1 module holds values that are NaN or inf"),
    "inf alpha": ({f"{Q}.alpha": torch.tensor(float("inf"))}, "NaN or infinite"),
    "half": ({f"{Q}.lora_up.weight": None}, f"{Q}.lora_down.weight stands alone: its other half lora_up.weight"),
    "no alpha": ({f"{Q}.alpha": None}, f"1 of {len(FEW)} modules have no alpha, first {Q}"),
    "shapes": ({f"{Q}.lora_down.weight": torch.ones(64, 4)}, f"{Q}: up [64, 4] and down [64, 4] cannot be multiplied"),
    "flat": ({f"{Q}.lora_up.weight": torch.ones(64)}, f"{Q}: up [64] and down [4, 64] cannot be multiplied"),
    "one number": (
        {f"{Q}.lora_up.weight": torch.tensor(1.0), f"{Q}.lora_down.weight": torch.tensor(1.0)},
        f"{Q}: up [] and down [] cannot be multiplied",
    ),
    "rank 0": (
        {f"{Q}.lora_up.weight": torch.ones(64, 0), f"{Q}.lora_down.weight": torch.ones(0, 64)},
        f"{Q}: up [64, 0] and down [0, 64] hold no numbers",
    ),
    "empty alpha": ({f"{Q}.alpha": torch.ones(0)}, f"{Q}.alpha has shape [0], not one number"),
    "scale": ({f"{Q}.alpha": torch.tensor(64.0)}, "alpha / rank is 16, outside 0.25 … 2"),
    "alphas": ({f"{Q}.alpha": torch.tensor(4.0)}, "alphas differ, 2 to 4: diffusers misapplies that"),
    "ranks": (
        {f"{Q}.lora_up.weight": torch.ones(64, 2), f"{Q}.lora_down.weight": torch.ones(2, 64)},
        "ranks differ, 2 to 4",
    ),
    "unknown": ({"lora_unet_conv_on.alpha": torch.tensor(1.0)}, "1 keys name no layer of Stable Diffusion 1.x, first"),
    "lycoris": ({f"{Q}_x.hada_w1_a": torch.ones(1)}, "holds LyCORIS modules"),
    "dora": ({f"{Q}.dora_scale": torch.ones(1, 64)}, "a DoRA: diffusers, additional-networks and kohya's tools drop"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_looks_wrong(name: str, tmp_path: Path) -> None:
    change, told = FAULTS[name]
    assert told in problems(lora(tmp_path / "x.safetensors", spoilt(change)))


def test_shapes_that_are_none_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One odd file must not end the look at a folder, and no reader takes it."""
    odd = ["flat", "one number", "rank 0", "empty alpha"]
    for name in odd:
        lora(tmp_path / f"{name}.safetensors", spoilt(FAULTS[name][0]))
    lora(tmp_path / "good.safetensors")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(odd) + 1
    for name in odd:
        file = str(tmp_path / f"{name}.safetensors")
        assert main(["convert", file, "--to", "kohya", "--output", str(tmp_path / "x.safetensors")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {file}: {Q}"), line


PEFT = '{"peft_type": "LORA", "lora_alpha": %s}'


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "adapter_model.safetensors: no such file"),
        ({"adapter_model.bin": b"PK\x03\x04"}, "adapter_model.bin: this adapter's weights are a pickle"),
        ({"adapter_model.safetensors": b"\x10" + bytes(7) + b"{}"}, "adapter_model.safetensors: truncated"),
        ({"adapter_model.safetensors": b"garbage!!!!!!!!!"}, "adapter_model.safetensors: this is not a safetensors"),
        ({"adapter_config.json": b"[" * 100_000}, "adapter_config.json: cannot be read"),
        ({"adapter_config.json": (PEFT % '"x"').encode()}, "the alpha of unet.mid_block"),
        ({"adapter_config.json": (PEFT % '1, "alpha_pattern": [1]').encode()}, "alpha_pattern is no table of alphas"),
    ],
)
def test_a_spoilt_folder_of_pefts_is_told_in_a_line(
    files: dict[str, bytes], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    pair = {"lora_A.weight": torch.ones(4, 64), "lora_B.weight": torch.ones(64, 4)}
    if "adapter_config.json" in files:
        stem = f"base_model.model.{MID.partition('.')[2]}.attn1.to_q"
        lora_files.write(folder / "adapter_model.safetensors", {f"{stem}.{leaf}": t for leaf, t in pair.items()})
    for name, data in ({"adapter_config.json": (PEFT % "4").encode()} | files).items():
        (folder / name).write_bytes(data)
    for words in (["inspect", str(folder)], ["convert", str(folder), "--to", "kohya"], ["resize", str(folder)]):
        more = ["--rank", "2", "--output", str(tmp_path / "x.safetensors")] if words[0] == "resize" else []
        assert main([*words, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {folder}") and told in line, line


def test_what_the_metadata_gets_wrong(tmp_path: Path) -> None:
    assert "says ss_network_alpha 1, the tensors 2" in problems(lora(tmp_path / "a.safetensors", ss_network_alpha="1"))
    assert "says ss_network_dim 8, the tensors 4" in problems(lora(tmp_path / "b.safetensors", ss_network_dim="8"))
    assert "A1111's list hides it" in problems(lora(tmp_path / "c.safetensors", ss_v2="True"))
    sdxl = lora(tmp_path / "d.safetensors", ss_base_model_version="sdxl_base_v1-0")
    assert "because ss_base_model_version is 'sdxl_base_v1-0'" in problems(sdxl)
    found = tensors(lora_files.weights())
    told = with_hashes(found, FACTS)
    found[f"{Q}.lora_up.weight"] = found[f"{Q}.lora_up.weight"] * 1.5
    changed = lora_files.write(tmp_path / "e.safetensors", found, told)
    assert problems(changed) == "sshs_model_hash in the metadata is not this file's: the tensors were changed after"
    lycoris = lora_files.write(tmp_path / "f.safetensors", found, FACTS | {"sshs_model_hash": "0x" + "1" * 64})
    assert problems(lycoris).startswith("sshs_model_hash in the metadata is lycoris-lora's own")
    assert main(["metadata", str(lycoris), "--set", "modelspec.title=x"]) == 0 and problems(lycoris) == ""
    assert a1111.hidden({}, "sd_v1") is None and a1111.hidden({"ss_v2": "True"}, "sd_v1") is not None
    assert a1111.hidden(FACTS, "sdxl_base_v1-0") is not None


def test_trigger_words() -> None:
    tags = {"10_cat": {"a cat": 9, "sitting": 3}, "5_more": {"a cat": 1, "neon": 4}}
    told = {"modelspec.trigger_phrase": "ohwx cat", "ss_tag_frequency": json.dumps(tags)}
    assert portrait.triggers(told) == [("ohwx cat", None), ("a cat", 10), ("neon", 4), ("sitting", 3)]
    assert portrait.triggers({"ss_tag_frequency": "[1]"}) == portrait.triggers({"ss_tag_frequency": "{"}) == []
    assert portrait.triggers({"ss_tag_frequency": "[" * 100_000}) == []


def test_other_families_are_read_by_their_pairs(tmp_path: Path) -> None:
    pair = {"lora_down.weight": torch.randn(4, 8), "lora_up.weight": torch.randn(8, 4), "alpha": torch.tensor(4.0)}
    unet = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    stems = ["lora_te2_text_model_encoder_layers_0_mlp_fc1", unet]
    path = lora_files.write(tmp_path / "x.safetensors", {f"{s}.{leaf}": t for s in stems for leaf, t in pair.items()})
    report = report_of(path)
    assert report.family == "SDXL" and report.lora is not None
    assert [block.name for block in report.lora.blocks] == ["text encoder 2", "input_blocks 4"]
    flux = {f"lora_unet_double_blocks_18_img_attn_qkv.{leaf}": t for leaf, t in pair.items()}
    assert report_of(lora_files.write(tmp_path / "flux.safetensors", flux)).family == "FLUX"


def test_converted_files_keep_their_alpha(tmp_path: Path) -> None:
    start = lora(tmp_path / "x.safetensors")
    for way in ("diffusers", "peft"):
        assert main(["convert", str(start), "--to", way]) == 0
    for made in ("x-diffusers.safetensors", "x-peft"):
        report = report_of(tmp_path / made)
        assert report.lora is not None and (report.lora.ranks, report.lora.alphas) == ([4], [2.0])
        assert report.problems == [], report.problems
        assert report.loads["A1111"].startswith("no: ")


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = lora(tmp_path / "x.safetensors", ss_tag_frequency=json.dumps({"d": {"neon": 3}}))
    assert main(["inspect", str(start)]) == 0
    shown = capsys.readouterr().out
    assert "x.safetensors: a LoRA, Stable Diffusion 1.x" in shown and f"{len(FEW)} modules, rank 4, alpha 2" in shown
    assert "trigger words: neon (3)" in shown and "A1111: yes" in shown and shown.endswith("nothing looks wrong\n")
    lora(tmp_path / "nan.safetensors", spoilt({f"{Q}.lora_up.weight": torch.full((64, 4), float("nan"))}))
    assert main(["inspect", str(tmp_path / "nan.safetensors"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lora"]["modules"][0]["rank"] == 4 and "NaN" in told["problems"][0]
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    assert main(["inspect", str(tmp_path)]) == 2
    table = capsys.readouterr()
    rows = table.out.splitlines()
    assert len(rows) == 3 and rows[1].startswith("nan.safetensors") and "1: 1 module holds" in rows[1]
    assert "broken.safetensors: this is a web page" in table.err
    run = tmp_path / "run"
    for own in ("cache/0a/" + "b" * 62, "state/step-00000010/lora"):
        (run / own).parent.mkdir(parents=True)
        lora(run / f"{own}.safetensors")
    assert main(["inspect", str(run)]) == 2
    assert "no .safetensors or .gguf file but 2 of a run's cache and resume states" in capsys.readouterr().err
    lora(run / "x.safetensors")
    assert main(["inspect", str(run)]) == 0
    table = capsys.readouterr()
    rows = table.out.splitlines()
    assert rows[0] == "2 files of a run's cache and resume states are left out"
    assert len(rows) == 3 and rows[2].startswith("x.safetensors")
    assert main(["inspect", str(base)]) == 0
    shown = capsys.readouterr().out
    assert "a Stable Diffusion 1.x checkpoint" in shown and "UNet: 2,424,260 numbers" in shown
    assert model_hashes(base).autov2 in shown


def test_what_is_no_model_is_told_in_few_words_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere, table = tmp_path / "nope.safetensors", tmp_path / "metadata.csv"
    table.write_text("filename,prompt\na.png,a cat\n", encoding="utf-8")
    assert main(["inspect", str(nowhere)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {nowhere.as_posix()} does not exist; put the model there")
    assert main(["convert", str(table), "--to", "peft"]) == 2
    assert "this is not a safetensors file; " in capsys.readouterr().err
    assert main(["generate", "--base", str(lora(tmp_path / "x.safetensors")), "--prompt", "x"]) == 2
    told = capsys.readouterr().err
    assert "this is a LoRA; " in told and len(told.splitlines()) == 1 and len(told) < 400
    assert "Stable Diffusion 1.x, Stable Diffusion 2.x, SDXL or another family of docs/models.md" in told
    assert main(["combine", str(table), str(table), "--report-only"]) == 2
    assert capsys.readouterr().err.count("this is not a safetensors file; name the .safetensors of a LoRA") == 1
