"""LoRA files on a loaded model: on with a strength, off without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_scripts.adapters import lycoris
from lora_scripts.adapters.dora import DoraLayer, RowDoraLayer
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import Adapter, LoraLayer, lora_shapes
from lora_scripts.adapters.lycoris import LycorisLayer
from lora_scripts.adapters.products import outline
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.base import Family, PictureFamily
from lora_scripts.loras.reading import Change


def check_fits(weights: Mapping[str, Change], family: Family, path: Path) -> None:
    """UserError, all faults at once, unless every module is there and has the right shape."""
    faults = []
    for name, w in weights.items():
        layer = _layer(family, name)
        if layer is None:
            faults.append(UserError(f"{name}: the base model has no such layer", file=path))
            continue
        weight = outline(layer)
        if not isinstance(w, LoraWeights):
            out, inner = lycoris.shape_of(w)
            if (out, inner or weight[0].numel()) != (weight.shape[0], weight[0].numel()):
                shapes = f"a change [{out}, {inner}] for a weight {list(weight.shape)}"
                faults.append(UserError(f"{name}: {shapes}", file=path, hint="this LoRA is for another base model"))
            continue
        down, up = lora_shapes(layer, w.rank)
        if w.down.numel() != torch.Size(down).numel() or w.up.numel() != torch.Size(up).numel():
            shapes = f"A {list(w.down.shape)}, B {list(w.up.shape)} for a weight {list(weight.shape)}"
            faults.append(UserError(f"{name}: {shapes}", file=path, hint="this LoRA is for another base model"))
        elif w.dora is not None and not w.by_output and not _by_input(w.dora, weight):
            shapes = f"lengths {list(w.dora.shape)} for a weight {list(weight.shape)}"
            faults.append(UserError(f"{name}: {shapes}", file=path, hint="this DoRA is for another base model"))
    raise_all(faults[:5])


def _layer(family: Family, path: str) -> nn.Linear | nn.Conv2d | None:
    """The base's layer of that path, also one that is never trained here; None where there is none."""
    root, _, inner = path.partition(".")
    try:
        layer = family.roots[root].get_submodule(inner)
    except (KeyError, AttributeError):
        return None
    layer = layer.frozen if isinstance(layer, Adapter) else layer
    return layer if isinstance(layer, nn.Linear | nn.Conv2d) else None


def _by_input(lengths: Tensor, weight: Tensor) -> bool:
    return lengths.numel() == weight.shape[1] and (lengths.shape[0] == 1 or lengths.numel() == 1)


def check_words_fit(words: Mapping[str, Tensor], family: PictureFamily, path: Path) -> None:
    """UserError unless the vectors are as wide as the text encoder's own."""
    width = family.vectors_of("").shape[1] if words else 0
    for word, vectors in words.items():
        if vectors.shape[1] != width:
            text = f"the word {word!r} has vectors of {vectors.shape[1]} numbers, the text encoder's have {width}"
            raise UserError(text, file=path, hint="this LoRA is for another base model")


def apply(
    family: Family, weights: Mapping[str, Change], strength: float, text_strength: float | None = None
) -> dict[str, Adapter]:
    """Puts a LoRA on; take it off with `adapters.inject.remove(family.roots, layers)`.

    `text_strength`: in the text encoder, if another than `strength`.
    """

    def make(path: str, layer: nn.Module) -> Adapter:
        w = weights[path]
        if not isinstance(w, LoraWeights):
            return LycorisLayer.of_leaves(layer, w)
        kind = LoraLayer if w.dora is None else RowDoraLayer if w.by_output else DoraLayer
        return kind(layer, w.rank, w.alpha)

    layers = inject(family.roots, weights, make, reset=False)
    for path, layer in layers.items():
        w = weights[path]
        if isinstance(w, LoraWeights):
            layer.load(values_of(w))
        layer.requires_grad_(False).eval()
        layer.place(family.device)
    set_strength(family, layers, strength, strength if text_strength is None else text_strength)
    return layers


def set_strength(family: Family, layers: Mapping[str, Adapter], strength: float, text_strength: float) -> None:
    """Of a LoRA that is on: of its layers outside the text encoder, and of those in it."""
    for path, layer in layers.items():
        layer.strength = text_strength if family.facts.inside_text(path) else strength


def values_of(weights: LoraWeights) -> dict[str, Tensor]:
    """What a file says of a layer, by the names of `Adapter.values`."""
    values = {"down": weights.down, "up": weights.up}
    return values if weights.dora is None else values | {"magnitude": weights.dora}
