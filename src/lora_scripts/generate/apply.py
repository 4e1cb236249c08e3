"""LoRA files on a loaded model: on with a strength, off without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.base import Family
from lora_scripts.formats import header, kohya
from lora_scripts.formats.kohya import LoraWeights
from lora_scripts.lora.inject import inject
from lora_scripts.lora.layer import LoraLayer, lora_shapes


def read_lora(path: Path) -> dict[str, LoraWeights]:
    """Module path -> weights of a LoRA file. UserError for another file, or one that changes no weight."""
    kind = header.identify(path)
    if kind is not header.Kind.LORA:
        raise UserError(f"this is {kind.words}, not a LoRA", file=path, hint="name the .safetensors of a LoRA")
    weights = kohya.from_kohya(safetensors.torch.load_file(path), file=path)
    if not any(bool(w.up.any()) and bool(w.down.any()) and w.alpha for w in weights.values()):
        raise UserError("this LoRA changes no weight: all of it is zero", file=path, hint="take another file")
    return weights


def check_fits(weights: Mapping[str, LoraWeights], family: Family, path: Path) -> None:
    """UserError, all faults at once, unless every module is there and has the right shape."""
    layers, faults = family.trainable(), []
    for name, w in weights.items():
        layer = layers.get(name)
        if layer is None:
            faults.append(UserError(f"{name}: the base model has no such layer", file=path))
            continue
        layer = layer.frozen if isinstance(layer, LoraLayer) else layer
        assert isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        down, up = lora_shapes(layer, w.rank)
        if w.down.numel() != torch.Size(down).numel() or w.up.numel() != torch.Size(up).numel():
            shapes = f"A {list(w.down.shape)}, B {list(w.up.shape)} for a weight {list(layer.weight.shape)}"
            faults.append(UserError(f"{name}: {shapes}", file=path, hint="this LoRA is for another base model"))
    raise_all(faults[:5])


def apply(family: Family, weights: Mapping[str, LoraWeights], strength: float) -> dict[str, LoraLayer]:
    """Puts a LoRA on; take it off with `lora.inject.remove(family.roots, layers)`."""
    layers = inject(family.roots, weights, lambda p: (weights[p].rank, weights[p].alpha))
    for name, layer in layers.items():
        with torch.no_grad():
            layer.down.copy_(weights[name].down.reshape(layer.down.shape))
            layer.up.copy_(weights[name].up.reshape(layer.up.shape))
        layer.strength = strength
        layer.requires_grad_(False).eval()
    return layers
