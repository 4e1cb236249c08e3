"""Which layers of a language model take a LoRA, and why others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from lora_scripts.adapters.layer import Adapter
from lora_scripts.families.causal_lm.names import ROOT

ROUTERS = ("gate", "router")
"""Layers that choose the experts of a token: LoRA leaves them alone, as a small change there sends tokens elsewhere."""


def trainable(model: Any) -> dict[str, nn.Module]:
    """Path -> layer, for every linear layer that LoRA may wrap: no tied output layer, and no choice of experts."""
    head, tied = model.get_output_embeddings(), _is_tied(model)
    layers: dict[str, nn.Module] = {}
    wrapped = "\0"
    for name, layer in model.named_modules():
        if name.startswith(wrapped):  # the layer inside of an adapter
            continue
        wrapped = f"{name}." if isinstance(layer, Adapter) else "\0"
        inner = layer.frozen if isinstance(layer, Adapter) else layer
        alone = not (tied and layer is head)
        if isinstance(inner, nn.Linear) and alone and name.rpartition(".")[2] not in ROUTERS:
            layers[f"{ROOT}.{name}"] = layer
    return layers


def refusal(model: Any, pattern: str, matches: Callable[[str], bool]) -> str | None:
    """Why a pattern that names no layer of `trainable` names none, where that is for a reason."""
    head = model.get_output_embeddings()
    name = next((f"{ROOT}.{n}" for n, layer in model.named_modules() if layer is head), "")
    if _is_tied(model) and matches(name):
        return f"{name} is the table of embeddings once more; a LoRA on it alone would untie the two"
    if any(matches(path) or matches(path.rpartition(".")[0]) for path in _experts(model)):
        return f"{pattern} names experts, which are one weight of three dimensions; train attention instead"
    return None


def _is_tied(model: Any) -> bool:
    """Whether the output layer is the table of embeddings once more, whether or not a file has it twice."""
    head = model.get_output_embeddings()
    inner = head.frozen if isinstance(head, Adapter) else head
    return inner is not None and inner.weight is model.get_input_embeddings().weight


def _experts(model: nn.Module) -> Iterator[str]:
    """The paths of weights that hold many layers in one, [experts, …]: LoRA has no form for them here."""
    return (f"{ROOT}.{name}" for name, p in model.named_parameters() if p.dim() == 3 and "expert" in name)
