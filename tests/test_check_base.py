"""What the doctor says of a base that cannot draw a data set's detail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_scripts.cli import main
from lora_scripts.demo import world
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.detail import detail_of
from lora_scripts.families.table import load_pictures
from lora_scripts.grid.measures import as_pixels

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"


class Through:
    """A family whose VAE does what it is told to pixels."""

    def __init__(self, change: float) -> None:
        self.change = change

    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": pixels}

    def decode_image(self, latents: torch.Tensor) -> Image.Image:
        array = ((latents * self.change).clamp(-1, 1) + 1) * 127.5
        return Image.fromarray(array.round().to(torch.uint8).permute(1, 2, 0).numpy())


def test_detail_is_kept_lost_or_halved() -> None:
    rng = np.random.default_rng(0)
    noise = as_pixels(Image.fromarray(rng.integers(64, 192, (32, 32, 3), dtype=np.uint8)))
    for change in (1.0, 0.5, 0.0):
        found = detail_of(Through(change), noise)  # type: ignore[arg-type]
        assert found.some and found.kept == pytest.approx(change, abs=0.01)
    assert not detail_of(Through(1.0), torch.zeros(3, 32, 32)).some  # type: ignore[arg-type]


def test_the_doctor_says_what_the_base_cannot_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.write_pictures(tmp_path / "data", world.style_set("sketch", 2, seed=1), 64)
    (tmp_path / "data" / "metadata.csv").write_text("filename,prompt\nimg001.png,a\nimg002.png,b\n", encoding="utf-8")
    words = ["check", str(tmp_path / "data"), "--resolution", "64x64"]
    assert main([*words, "--base", str(BASE)]) == 0
    told = capsys.readouterr().out
    assert "your base cannot draw this detail: its VAE keeps" in told and "no training brings it back" in told
    assert main(words) == 0 and "cannot draw" not in capsys.readouterr().out
    assert main([*words, "--base"]) == 2
    assert "write --base models/base.safetensors" in capsys.readouterr().err


def test_smooth_pictures_lose_nothing() -> None:
    family = load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))
    smooth = as_pixels(Image.linear_gradient("L").convert("RGB").resize((64, 64)))
    assert not detail_of(family, smooth).some
