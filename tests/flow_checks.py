"""What holds a flow family against diffusers: batches, LoRA, weights in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lora_scripts.adapters.inject import inject, remove
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.base import Batch, LoadOptions
from lora_scripts.families.facts import Facts
from lora_scripts.families.table import load_family
from lora_scripts.formats.header import read_header


def batch_of(family: Any, pixels: torch.Tensor, captions: Sequence[str]) -> Batch:
    """As the loop gives it."""
    latents, texts = family.encode_image(pixels), family.encode_text(captions)
    return Batch(latents, captions, texts, ["a", "b"], [torch.Generator().manual_seed(n) for n in range(2)])


def lora_of(facts: Facts, transformer: Any, rank: int = 2, alpha: float = 0.5) -> dict[str, LoraWeights]:
    """On every layer that LoRA files have names for, with alpha unlike the rank."""
    generator = torch.Generator().manual_seed(3)
    layers, weights = transformer.state_dict(), {}
    for path in facts.names().written:
        key = f"{path.removeprefix('transformer.')}.weight"
        if key in layers:
            out, inner = layers[key].shape
            down, up = (torch.randn(*shape, generator=generator) / 4 for shape in ((rank, inner), (out, rank)))
            weights[path] = LoraWeights(down, up, alpha)
    return weights


def predicted(
    family: Any, weights: dict[str, LoraWeights], x: torch.Tensor, sigma: torch.Tensor, texts: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the base answers alone, and with a LoRA of rank 2 and alpha 0.5."""
    bare = family.predict(x, sigma, texts)
    layers: Any = inject(family.roots, weights, lambda path, layer: LoraLayer(layer, 2, 0.5), reset=False)
    for path, layer in layers.items():
        layer.load({"down": weights[path].down, "up": weights[path].up})
    ours = family.predict(x, sigma, texts)
    remove(family.roots, layers)
    return bare, ours


def misplaced(facts: Facts, base: Path, parts: Callable[[Path], dict[str, object]]) -> list[str]:
    """Paths whose weight in the file, as `Facts.weights` finds it, is not the loaded model's."""
    tensors, wrong = load_file(base), []
    options: Any = {"device": torch.device("cpu"), "dtype": torch.float32, **parts(base.parent)}
    model: Any = load_family(facts, base, LoadOptions(**options))
    state = model.transformer.state_dict()
    for path, at in facts.weights(read_header(base), base).items():
        held = tensors[at.key]
        if at.share is not None:
            held = held[at.share.rows(len(held))]
        if not torch.equal(held, state[f"{path.removeprefix('transformer.')}.weight"]):
            wrong.append(path)
    return wrong
