"""What the matchers of the consumers share: the layers of a base model, a change to one of them, a key that fails.

A matcher is our own statement of how a program finds the layer for each key of a LoRA file, and of what it does with a
key that it does not know. It was written from the program's behaviour (see the docstring of each); it runs none of its
code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lora_scripts.loras.embedding import bundled
from lora_scripts.loras.naming import ALPHA


@dataclass(frozen=True)
class Delta:
    """ΔW = scale · up @ down, of one layer; with `dora`, the DoRA around it."""

    down: Tensor
    up: Tensor
    scale: float
    dora: Tensor | None = None
    compute: Callable[[], Tensor] | None = None
    """The consumer's own ΔW, where one was run."""

    def delta(self) -> Tensor:
        """As a consumer computes it, float32, [out, in · k · k]."""
        if self.compute is not None:
            return self.compute().flatten(1)
        return (self.up.float().flatten(1) @ self.down.float().flatten(1)) * self.scale

    def exact(self) -> Tensor:
        """In float64, [out, in · k · k]."""
        return (self.up.double().flatten(1) @ self.down.double().flatten(1)) * self.scale

    def same(self, other: Delta) -> bool:
        """Whether the numbers are the same, whatever they are kept in."""
        return self.scale == other.scale and _equal(self.down, other.down) and _equal(self.up, other.up)


class Fault(NamedTuple):
    """Why a file does not do what it should, in one consumer."""

    key: str
    why: str


@dataclass
class Reading:
    """What a consumer makes of a file."""

    changes: dict[str, Delta] = field(default_factory=dict)
    """By our path."""
    faults: list[Fault] = field(default_factory=list)
    """Keys that it drops, mistakes or refuses, in the file's order."""
    refused: bool = False
    """It takes nothing of the file."""
    note: str = ""
    """What a person should know although it works."""

    def refuse(self, key: str, why: str) -> Reading:
        """Nothing is applied."""
        self.changes.clear()
        self.faults.insert(0, Fault(key, why))
        self.refused = True
        return self


def stems(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Stem -> leaf -> tensor, cut at the first dot, as most consumers do."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, _, leaf = key.partition(".")
        groups.setdefault(stem, {})[leaf] = tensor
    return groups


def unread_words(tensors: Mapping[str, Tensor]) -> str:
    """The note of a consumer that takes a LoRA and leaves its bundled words alone."""
    words = ", ".join(bundled(tensors))
    return f"the word {words} in the file is not read, its embedding file is" if words else ""


def misfit(down: Tensor, up: Tensor, shape: tuple[int, ...]) -> str | None:
    """Why two factors give no change of a weight of this shape; None when they do. () fits all."""
    if down.dim() not in (2, 4) or up.dim() not in (2, 4) or up.flatten(1).shape[1] != down.shape[0]:
        return f"up {list(up.shape)} and down {list(down.shape)} cannot be multiplied"
    if shape and (up.shape[0], down[0].numel()) != (shape[0], math.prod(shape[1:])):
        return f"up {list(up.shape)} and down {list(down.shape)} do not fit the layer's weight {list(shape)}"
    return None


def scale_of(parts: Mapping[str, Tensor], rank: int, *, zero_means_rank: bool = False) -> float:
    """alpha / rank; 1 without an alpha."""
    alpha = parts.get(ALPHA)
    value = float(rank) if alpha is None else float(alpha.float().item())
    return (value or float(rank)) / rank if zero_means_rank else value / rank


def per_input(dora: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether `dora_scale` has one number for each input, the form that all consumers of DoRA share."""
    return dora is None or not shape or (dora.shape[0] == 1 and dora.numel() == shape[1])


def _equal(a: Tensor, b: Tensor) -> bool:
    """By value: a consumer may keep fp16 weights in fp32, and a 1 x 1 convolution's as a matrix."""
    if a is b:
        return True
    a, b = a.flatten(1), b.flatten(1)
    return a.shape == b.shape and bool(torch.equal(a.float(), b.float()))
