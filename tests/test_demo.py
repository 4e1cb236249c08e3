"""The demo as a person starts it, shortened, and what the package brings for it."""

from __future__ import annotations

import csv
import re
from importlib import resources
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_scripts.cli import demo
from lora_scripts.cli.show import People
from lora_scripts.config.load import load_config
from lora_scripts.demo import world
from lora_scripts.demo.main import run_demo
from lora_scripts.demo.place import PICTURES, config_text
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.sd1 import check
from lora_scripts.families.table import by_name, load_family
from lora_scripts.loras.file import read

ROOT = Path(__file__).parent.parent
ASSETS = Path(str(resources.files("lora_scripts.demo"))) / "assets"


def test_the_template_is_the_one_in_the_package() -> None:
    assert (ROOT / "configs" / "demo.yaml").read_text("utf-8") == (ASSETS / "demo.yaml").read_text("utf-8")


def test_all_that_the_package_brings_is_within_27_mb() -> None:
    package = Path(str(resources.files("lora_scripts")))
    brought = [p for p in package.rglob("assets/**/*") if p.is_file()]
    assert ASSETS / "base.safetensors" in brought
    assert sum(p.stat().st_size for p in brought) <= 27_000_000


def test_the_base_is_a_stable_diffusion_1_in_fp16_and_says_its_size() -> None:
    head = check.require_file(ASSETS / "base.safetensors")
    assert {info.dtype for info in head.tensors.values()} == {"F16"}
    family = load_family(by_name("sd1"), ASSETS / "base.safetensors", LoadOptions(torch.device("cpu"), torch.float32))
    assert family.native_size == (128, 128)
    assert len(family.trainable()) > 192


def test_a_short_demo_leaves_a_lora_a_report_and_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["epochs=1", "sample_every=0", "sample_steps=2", "report=short", "resolution=64"]
    with People(demo.event_words) as sink:
        result = run_demo(tmp_path / "demo", quick, sink)
    print("\n".join(demo.words(result)))
    told = " ".join(capsys.readouterr().out.split())  # the table folds its lines
    assert "50 captions written" in told
    with open(tmp_path / "demo" / "data" / "metadata.csv", newline="", encoding="utf-8") as file:
        said = {row["filename"]: row["prompt"] for row in csv.DictReader(file)}
    true = {f"img{i:03d}.png": world.caption(scene) for i, scene in enumerate(world.training_scenes(), 1)}
    assert said.keys() == true.keys()
    assert len(said.items() & true.items()) >= 47
    assert "45 images x 1 repeats / batch 4 = 12 batches, x 1 epochs = 12 steps" in told
    assert "verified: 192 of 192 modules" in told
    assert len(read(tmp_path / "demo" / "neon" / "neon.safetensors").modules) == 192
    assert re.search(r"&lt;lora:neon:[0-9.]+&gt;", (tmp_path / "demo" / "neon" / "report.html").read_text("utf-8"))
    assert Image.open(tmp_path / "demo" / "data" / "img050.png").size == (128, 128)
    written = load_config(tmp_path / "demo" / "demo.yaml")  # finds its own folder
    assert (written.train_data_dir, written.output_dir) == (tmp_path / "demo" / "data", tmp_path / "demo" / "neon")
    assert config_text("demo.yaml", PICTURES, PICTURES) == (ASSETS / "demo.yaml").read_text("utf-8")
    again = run_demo(tmp_path / "demo")  # a second start trains nothing
    assert again.trained is None and "has run already" in demo.words(again)[0]
