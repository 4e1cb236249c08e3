"""LoRA files for the tests of combine, merge, extract and resize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conftest import offline
from lora_scripts.adapters.layer import lora_shapes
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.sd1.names import sd1
from lora_scripts.formats import io
from lora_scripts.loras import kohya

Weights = dict[str, LoraWeights]


def random_lora(
    family: Any,
    rank: int,
    alpha: float,
    seed: int,
    inside: Callable[[str], bool] = lambda path: True,
    size: float = 0.1,
) -> Weights:
    """Random factors in every layer whose path is `inside`."""
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for path, layer in family.trainable().items():
        if inside(path):
            down, up = lora_shapes(layer, rank)
            a = torch.randn(down, generator=g) / down[1] ** 0.5
            weights[path] = LoraWeights(a, size * torch.randn(up, generator=g), alpha)
    return weights


def save(path: Path, weights: Weights, dtype: torch.dtype = torch.float32, **metadata: str) -> Path:
    io.save_safetensors(path, kohya.to_kohya(weights, sd1().kohya, dtype=dtype), metadata)
    return path


def delta(w: LoraWeights, strength: float = 1.0) -> torch.Tensor:
    """ΔW by hand, [out, in · k · k] in float64."""
    return strength * w.alpha / w.down.shape[0] * w.up.double().flatten(1) @ w.down.double().flatten(1)


def total(loras: list[tuple[Weights, float]], path: str) -> torch.Tensor:
    """Σ strength · ΔW of one module, by hand."""
    parts = [delta(lora[path], strength) for lora, strength in loras if path in lora]
    return torch.stack(parts).sum(0)


def run(*argv: object) -> None:
    """A command that must succeed, without a network."""
    with offline():
        assert main([str(word) for word in argv]) == 0


def mistake(capsys: Any, *argv: object) -> str:
    """What a command that must fail says."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    return capsys.readouterr().err
