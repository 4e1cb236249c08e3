"""`lora-scripts card`: what it tells, the names of its files, and the strength that it recommends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conftest import offline
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.sd1.names import sd1
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes, with_hashes
from lora_scripts.generate.png import infotext
from lora_scripts.loras import kohya
from lora_scripts.report.card import StrengthLine
from lora_scripts.workshop.card_evidence import recommended

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA whose metadata names a phrase, and a grid of it at two strengths."""
    path = tmp_path / "loras" / "neon.safetensors"
    path.parent.mkdir()
    tensors = kohya.to_kohya({PATH: LoraWeights(torch.randn(4, 32), torch.randn(32, 4), 2.0)}, sd1().kohya)
    told = {"modelspec.trigger_phrase": 'neon "style"', "ss_steps": "104", "ss_sd_model_name": "v1-5.safetensors"}
    io.save_safetensors(path, tensors, with_hashes(tensors, told))
    return path


def write_grid(folder: Path, lora: Path) -> Path:
    cells, (autov3) = [], model_hashes(lora).autov3
    for number, (loras, strength) in enumerate((([], 0.0), ([autov3], 0.5), ([autov3], 1.0), (["0" * 12], 0.5))):
        file = f"cells/{number}.png"
        io.save_png(folder / file, Image.new("RGB", (640, 320), (number * 60, 0, 0)))
        cells.append({"file": file, "loras": loras, "strength": strength, "prompt": "a: red | house", "negative": "x",
                      "seed": 1, "cfg": 4.0, "steps": 20, "scheduler": "DDIM", "size": [640, 320]})  # fmt: skip
    measured = (([], 0.0, 0.0, 0.10), ([autov3], 0.5, 0.5, 0.09), ([autov3], 1.0, 0.9, 0.08), (["0" * 12], 0.5, 1, 1))
    rows = [
        {"loras": loras, "strength": strength, "pixels": 0.1, "style": style, "prompt": prompt}
        for loras, strength, style, prompt in measured
    ]
    (folder / "grid.json").write_text(json.dumps({"cells": cells, "rows": rows}))
    return folder


def card(*argv: str) -> int:
    with offline():
        return main(["card", *argv])


def test_a_card_with_a_grid(lora: Path, tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", lora)
    words = ["--grid", str(folder), "--license", "mit", "--base-model", "a/b", "--description", "Glowing edges."]
    assert card(str(lora), *words) == 0
    beside = {path.name for path in lora.parent.iterdir()}
    assert beside == {"neon.safetensors", "neon.preview.png", "neon.json", "neon.civitai.info", "neon-card"}
    text = (lora.parent / "neon-card" / "README.md").read_text("utf-8")
    _, head, body = text.split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["base_model"], told["license"], told["instance_prompt"]) == ("a/b", "mit", 'neon "style"')
    assert told["pipeline_tag"] == "text-to-image" and "lora" in told["tags"]
    (widget,) = told["widget"]  # the pictures at the recommended strength
    assert widget["text"] == "a: red | house"
    picture = lora.parent / "neon-card" / widget["output"]["url"]
    assert picture.read_bytes() == (folder / "cells" / "2.png").read_bytes()
    assert 'DiffusionPipeline.from_pretrained("a/b")' in body
    assert "<lora:neon:1>" in body and "Recommended: **1** (90 % of the training style" in body
    assert "| 0.5 | 10.0 % | 50 % | 9.0 % |" in body and "| steps | 104 |" in body and "| rank | 4 |" in body
    with Image.open(lora.with_name("neon.preview.png")) as preview:
        assert preview.size == (512, 256)
    user = json.loads(lora.with_name("neon.json").read_text())
    assert user["activation text"] == 'neon "style"' and user["preferred weight"] == 1 and user["sd version"] == "SD1"
    info = json.loads(lora.with_name("neon.civitai.info").read_text())
    hashes = model_hashes(lora)
    assert info["trainedWords"] == ['neon "style"'] and info["baseModel"] == "SD 1.5"
    assert info["files"][0]["hashes"]["SHA256"].lower() == hashes.sha256
    assert info["files"][0]["hashes"]["AutoV2"].lower() == hashes.sha256[:10]


def test_what_a_grid_holds_twice_is_told_once(lora: Path, tmp_path: Path) -> None:
    """As grids were drawn of a run whose best step is its last."""
    folder = write_grid(tmp_path / "grid", lora)
    told = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps({name: 2 * rows for name, rows in told.items()}))
    assert card(str(lora), "--grid", str(folder)) == 0
    text = (lora.parent / "neon-card" / "README.md").read_text("utf-8")
    assert len(yaml.safe_load(text.split("---\n")[1])["widget"]) == 1 and text.count("| 0.5 | 10.0 %") == 1


def test_a_persons_files_stay_unless_told(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = lora.with_suffix(".json")
    mine.write_text("mine")
    assert card(str(lora)) == 2
    assert "neon.json: is there already; add --overwrite to replace it" in capsys.readouterr().err
    assert mine.read_text() == "mine" and {p.name for p in lora.parent.iterdir()} == {"neon.safetensors", "neon.json"}
    assert card(str(lora), "--overwrite") == 0
    assert json.loads(mine.read_text())["preferred weight"] == 1
    assert card(str(lora)) == 0  # the same again replaces nothing
    assert card(str(lora), "--strength", "0.6") == 2


def test_without_a_grid_it_says_what_is_not_known(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card(str(lora), "--trigger", "glow") == 0
    told = capsys.readouterr().out
    assert "no license yet" in told and "base_model in the header is v1-5" in told and "there is no picture" in told
    text = (lora.parent / "neon-card" / "README.md").read_text("utf-8")
    assert (
        "# license: choose one" in text
        and "Recommended: **1** (that of the training; none was measured" in text
        and "**glow**" in text
    )
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "v1-5"
    assert 'StableDiffusionPipeline.from_single_file("v1-5.safetensors")' in text
    assert not lora.with_name("neon.preview.png").exists()


def test_the_strength_that_the_run_measured_of_this_file(lora: Path) -> None:
    """Not that of another file in the folder; a grid, which shows its pictures, counts more."""
    told = {"lora": model_hashes(lora).autov3, "strength": 0.6, "reason": "97 % of the style"}
    (lora.parent / "strength.json").write_text(json.dumps(told))
    assert card(str(lora)) == 0
    text = (lora.parent / "neon-card" / "README.md").read_text("utf-8")
    assert "Recommended: **0.6** (97 % of the style" in text and "<lora:neon:0.6>" in text
    assert json.loads(lora.with_suffix(".json").read_text())["preferred weight"] == 0.6
    grid = write_grid(lora.parent / "grid", lora)
    assert card(str(lora), "--grid", str(grid), "--overwrite") == 0
    assert json.loads(lora.with_suffix(".json").read_text())["preferred weight"] == 1
    for text in (json.dumps(told | {"lora": "0" * 12}), "{"):
        (lora.parent / "strength.json").write_text(text)
        assert card(str(lora), "--overwrite") == 0
        assert json.loads(lora.with_suffix(".json").read_text())["preferred weight"] == 1


def test_the_last_previews_of_the_run_by_what_they_say_themselves(lora: Path) -> None:
    """Without any prompt in a config; not the earlier ones, nor those of another file."""
    folder, autov3 = lora.parent / "samples", model_hashes(lora).autov3
    folder.mkdir()
    for name, digest in (("step000010-1", autov3), ("step000020-1", autov3), ("step000020-2", "0" * 12)):
        rows = {"Steps": 9, "Sampler": "DDIM", "CFG scale": "4.5", "Seed": 3, "Lora hashes": f"neon: {digest}"}
        told = PngInfo()
        told.add_text("parameters", infotext(f"{name}, red: blue <lora:neon:1>", "bad, worse", rows))
        Image.new("RGB", (64, 32)).save(folder / f"{name}.png", pnginfo=told)
    assert card(str(lora)) == 0
    head = (lora.parent / "neon-card" / "README.md").read_text("utf-8").split("---\n")[1]
    assert [widget["text"] for widget in yaml.safe_load(head)["widget"]] == ["step000020-1, red: blue"]
    (meta,) = [image["meta"] for image in json.loads(lora.with_suffix(".civitai.info").read_text())["images"]]
    assert (meta["seed"], meta["steps"], meta["cfgScale"], meta["sampler"]) == (3, 9, 4.5, "DDIM")
    assert meta["negativePrompt"] == "bad, worse"


def test_a_grid_of_another_lora_is_refused(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_grid(tmp_path / "grid", lora)
    other = lora.with_name("other.safetensors")
    tensors = kohya.to_kohya({PATH: LoraWeights(torch.randn(2, 32), torch.randn(32, 2), 2.0)}, sd1().kohya)
    io.save_safetensors(other, tensors)
    for grid, told in ((folder, "no picture of the LoRA alone"), (tmp_path, "cannot be read")):
        assert card(str(other), "--grid", str(grid)) == 2
        assert told in capsys.readouterr().err
    (folder / "grid.json").write_text("{}")
    assert card(str(lora), "--grid", str(folder)) == 2
    assert "no grid of lora-scripts" in capsys.readouterr().err
    shutil.copy(folder / "cells" / "0.png", tmp_path / "fake.safetensors")
    assert card(str(tmp_path / "fake.safetensors")) == 2
    assert "not a LoRA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "strength"),
    [
        ([(0, None, 0.1), (0.4, 0.6, 0.1), (0.8, 0.93, 0.1), (1.0, 0.95, 0.1)], 0.8),  # near the best, and weaker
        ([(0, None, 0.1), (0.4, 0.6, 0.1), (0.8, 0.7, 0.06), (1.0, 0.95, 0.04)], 0.8),  # at 1 the prompt is lost
        ([(0, None, 0.1), (0.8, 1.0, 0.1), (1.0, 1.4, 0.1)], 0.8),  # more than the training style is no gain
        ([(0, None, 0.1), (0.4, None, 0.1), (1.0, None, 0.09)], 1.0),
        ([(0, None, 0.1), (0.4, 0.5, 0.03), (1.0, 0.9, 0.01)], 0.4),
    ],
)
def test_the_recommended_strength(lines: list[tuple[float, float | None, float]], strength: float) -> None:
    found = recommended([StrengthLine(s, 0.1, style, prompt) for s, style, prompt in lines])
    assert found is not None and found[0] == strength
    assert recommended([]) is None


def test_a_description_is_text_and_no_markup(lora: Path) -> None:
    assert card(str(lora), "--description", "Neon <script>alert(1)</script>\n---\n# not a title") == 0
    text = (lora.parent / "neon-card" / "README.md").read_text("utf-8")
    assert "Neon &lt;script>alert(1)&lt;/script> --- # not a title" in text and "<script" not in text
    assert json.loads(lora.with_name("neon.json").read_text())["description"].startswith("Neon <script>")


def test_the_card_in_chinese(lora: Path) -> None:
    assert card(str(lora), "--language", "zh", "--license", "mit") == 0
    text = (lora.parent / "neon-card" / "README.md").read_text("utf-8")
    assert '触发词： **neon "style"**' in text and "## 使用方法" in text and "| 步数 | 104 |" in text
    assert "<lora:neon:1>" in text and "license: " in text and "Use it" not in text and "Recommended" not in text


def test_a_file_that_diffusers_does_not_read_has_no_program_for_it(lora: Path, tmp_path: Path) -> None:
    assert card(str(lora)) == 0
    plain = (lora.with_name(f"{lora.stem}-card") / "README.md").read_text("utf-8")
    wanted = ("load_lora_weights", "\nlibrary_name: diffusers\n", "\n- lora\n- diffusers\n")
    assert all(words in plain for words in wanted)
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    leaves = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(16, 16), "alpha": torch.tensor(1.0)}
    tensors = {f"{stem}.{leaf}": tensor for leaf, tensor in leaves.items()}
    io.save_safetensors(tmp_path / "lokr.safetensors", tensors, {})
    assert card(str(tmp_path / "lokr.safetensors")) == 0
    text = (tmp_path / "lokr-card" / "README.md").read_text("utf-8")
    assert "diffusers" not in text and "In Python:" not in text and "<lora:lokr:" in text
    assert "\npipeline_tag: text-to-image\n" in text and "\n- lora\n- template:sd-lora\n" in text
