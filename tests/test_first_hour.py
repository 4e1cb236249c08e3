"""The first hour of a newcomer, typed in the README's order, on the bundled miniature: from pictures to a picture.

What `start.py setup` does stands in test_start.py, the hub in test_hub.py, and `plan`, which rehearses in a process of
its own, in test_plan.py.
"""

from __future__ import annotations

import csv
import re
import shlex
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts.cli import main
from lora_scripts.demo import world

QUICK = ["epochs=1", "batch_size=5", "resolution=64", "lora_rank=2", "sample_steps=1", "sample_cfg=1"]
QUICK += ["precision=fp32", "val_split=0"]
"""What makes the training short; the rest is as `new` writes it."""


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """Types a command in a folder with five pictures and, in a WebUI beside it, a base; gives what was told."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    world.write_pictures(Path("data/mine"), world.training_scenes()[:5])
    base = tmp_path / "stable-diffusion-webui" / "models" / "Stable-diffusion" / "mini.safetensors"
    base.parent.mkdir(parents=True)
    base.write_bytes(resources.files("lora_scripts.demo").joinpath("assets/base.safetensors").read_bytes())

    def type_(command: str, *more: str, code: int = 0) -> str:
        _, *words = shlex.split(command)
        assert main([*words, *more]) == code, command
        told = capsys.readouterr()
        return told.out + told.err

    return type_


def test_from_pictures_to_a_picture(typed: object) -> None:
    assert callable(typed)
    told = typed("lora-scripts", code=2)
    assert "lora-scripts label --input data/mine --trigger myword" in told  # what to do first
    told = typed("lora-scripts label --input data/mine --model miniature --trigger zorb")
    assert "5 of 5 pictures have one now" in told
    rows = list(csv.reader(Path("data/mine/metadata.csv").read_text("utf-8").splitlines()))
    assert all(caption.startswith("zorb, ") for _, caption in rows[1:])
    told = typed("lora-scripts check data/mine")
    assert "5 pictures, 5 with a caption" in told and Path("data/mine-check.html").is_file()

    told = typed("lora-scripts new mine --data data/mine", code=2)  # which base? that of the WebUI
    (offered,) = re.findall(r"(lora-scripts new mine .* --base .*)", told)
    assert "../stable-diffusion-webui/models/Stable-diffusion/mini.safetensors" in offered
    told = typed(offered)
    assert "written: configs/mine.yaml (5 pictures" in told
    assert 'trigger_word: "zorb"' in Path("configs/mine.yaml").read_text("utf-8")

    told = typed("lora-scripts train --config configs/mine.yaml", "learning_rate=0.2", *QUICK, code=2)
    assert "learning_rate 0.2 destroys a LoRA" in told and not Path("output").exists()
    told = typed("lora-scripts train --config configs/mine.yaml", *QUICK)
    assert "5 pictures are few" in told and "verified: 192 of 192 modules" in told
    line = re.search(r"\(prompt: (<lora:mine:[\d.]+> zorb)\)", told)
    assert line is not None
    assert line[1].replace("<", "&lt;").replace(">", "&gt;") in Path("output/mine/report.html").read_text("utf-8")
    told = typed("lora-scripts train --config configs/mine.yaml", *QUICK, code=2)
    assert "already has a finished run (1 step)" in told and "init_lora=output/mine/mine.safetensors" in told

    typed("lora-scripts card output/mine/mine.safetensors --language zh")
    assert "触发词： **zorb**" in Path("output/mine/mine-card/README.md").read_text("utf-8")
    base = "../stable-diffusion-webui/models/Stable-diffusion/mini.safetensors"
    prompt = f"{line[1]}, a house"
    typed(f"lora-scripts generate --base {base} --steps 2 --size 64 --output out.png --prompt", prompt)
    with Image.open("out.png") as picture:
        assert picture.size == (64, 64) and "zorb, a house" in picture.text["parameters"]  # type: ignore[attr-defined]
