"""The table of families for the shared tests: one row each, with a narrow random model of the true topology."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tiny
import tiny_anima
import tiny_flow
import tiny_qwen
import tiny_xl


@dataclass(frozen=True)
class Row:
    """One family, as `test_families_life` takes it through the whole life of a LoRA."""

    name: str
    file: Callable[[Path], Path]
    """Writes the model as people have it in one file."""
    folder: Callable[[Path], Path] | None
    """Writes the same model as a diffusers folder; None where there is none."""
    keys: dict[str, object] = field(default_factory=lambda: {"train_text_encoder": "true"})
    """Of the config, beyond `tiny.write_config`."""
    beside: Callable[[Path], dict[str, object]] = lambda folder: {}
    """Keys of the config for what `file` wrote into its folder besides: a text encoder, a VAE."""
    namings: tuple[str, ...] = ("diffusers", "original", "kohya")
    """Names that `convert` goes through, and back."""


def _folder(path: Path) -> Path:
    for part, model in zip(("unet", "vae", "text_encoder"), tiny.models(), strict=True):
        model.save_pretrained(path / part)
    return path


ROWS = (
    Row("sd1", tiny.write_base, _folder),
    Row("sdxl", tiny_xl.write_base, tiny_xl.write_folder),
    Row(
        "zimage",
        tiny_flow.write_zimage,
        tiny_flow.write_folder,
        keys={},
        beside=tiny_flow.beside,
        namings=("diffusers", "kohya"),
    ),
    Row(
        "flux1",
        tiny_flow.write_flux1,
        tiny_flow.write_flux1_folder,
        keys={},
        beside=tiny_flow.beside_flux1,
        namings=("kohya", "diffusers"),
    ),
    Row(
        "flux2",
        tiny_flow.write_flux2,
        tiny_flow.write_flux2_folder,
        keys={},
        beside=tiny_flow.beside,
        namings=("diffusers",),
    ),
    Row(
        "qwen_image",
        tiny_qwen.write_base,
        tiny_qwen.write_folder,
        keys={},
        beside=tiny_qwen.beside,
        namings=("diffusers", "kohya"),
    ),
    Row(
        "anima",
        tiny_anima.write_base,
        tiny_anima.write_folder,
        keys={},
        beside=tiny_anima.beside,
        namings=("diffusers", "kohya"),
    ),
)
