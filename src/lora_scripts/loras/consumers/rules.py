"""What the matchers of the consumers share: the layers of a base model, a change to one of them, a key that fails.

A matcher is our own statement of how a program finds the layer for each key of a LoRA file, and of what it does with a
key that it does not know. It was written from the program's behaviour (see the docstring of each); it runs none of its
code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lora_scripts.adapters import lycoris
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError
from lora_scripts.families.names import Base, Layer
from lora_scripts.loras.embedding import BUNDLE, bundled
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, LYCORIS, UP
from lora_scripts.loras.reading import Change


@dataclass(frozen=True)
class Delta:
    """What is done to one layer."""

    change: Change
    compute: Callable[[slice], Tensor] | None = None
    """Some rows of the consumer's own ΔW, where one was run."""

    @property
    def dora(self) -> Tensor | None:
        """The lengths, of a DoRA."""
        return self.change.dora if isinstance(self.change, LoraWeights) else None

    def rows(self) -> tuple[tuple[int, int], Callable[[slice], Tensor]]:
        """(shape of ΔW, what gives some rows of it) as a consumer computes it, float32: [out, in · k · k], or as
        `lycoris.matrix` has it; of a DoRA its LoRA. A product is not formed whole."""
        if not isinstance(self.change, LoraWeights):
            whole = lycoris.matrix({leaf: tensor.float() for leaf, tensor in self.change.items()})
            return (whole.shape[0], whole.shape[1]), lambda rows: whole[rows]
        w, compute = self.change, self.compute
        shape = w.up.shape[0], w.down[0].numel()
        if compute is not None:
            return shape, lambda rows: compute(rows).flatten(1)
        up, down = w.up.float().flatten(1), w.down.float().flatten(1)
        return shape, lambda rows: (up[rows] @ down) * (w.alpha / w.rank)

    def delta(self) -> Tensor:
        """All of them."""
        return self.rows()[1](slice(None))

    def exact_rows(self) -> tuple[tuple[int, int], Callable[[slice], Tensor]]:
        """The same in float64, by our own formula."""
        if not isinstance(self.change, LoraWeights):
            whole = self.exact()
            return (whole.shape[0], whole.shape[1]), lambda rows: whole[rows]
        thin = factors.of(self.change)
        return (thin.up.shape[0], thin.down.shape[1]), lambda rows: thin.up[rows] @ thin.down

    def exact(self) -> Tensor:
        """ΔW whole, in float64."""
        if not isinstance(self.change, LoraWeights):
            return lycoris.matrix({leaf: tensor.double() for leaf, tensor in self.change.items()})
        return factors.of(self.change).dense()

    def same(self, other: Delta) -> bool:
        """Whether the numbers are the same, whatever they are kept in."""
        mine, theirs = self.change, other.change
        if isinstance(mine, LoraWeights) and isinstance(theirs, LoraWeights):
            scales = mine.alpha / mine.rank == theirs.alpha / theirs.rank
            return scales and _equal(mine.down, theirs.down) and _equal(mine.up, theirs.up)
        if isinstance(mine, LoraWeights) or isinstance(theirs, LoraWeights):
            return False
        return mine.keys() == theirs.keys() and all(torch.equal(mine[leaf], theirs[leaf]) for leaf in mine)


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

    def take(
        self, layer: Layer, stem: str, parts: Mapping[str, Tensor], change: Change, why_not: str | None = None
    ) -> bool:
        """Notes the change of a layer, for programs that take `dora_scale` as one number an input; False where it does
        not fit, or for the reason `why_not`."""
        if why := why_not or misfit(change, layer.shape):
            self.faults.append(Fault(f"{stem}.{next(iter(parts))}", f"this layer is not changed: {why}"))
            return False
        if not _per_input(parts.get(DORA), layer.shape):
            self.faults.append(Fault(f"{stem}.{DORA}", "misread: one number an input is expected"))
        self.changes[layer.path] = Delta(change)
        return True


def stems(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Stem -> leaf -> tensor, cut at the first dot, as most consumers do; without bundled words, which change no
    layer."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, _, leaf = key.partition(".")
        if not key.startswith(BUNDLE):
            groups.setdefault(stem, {})[leaf] = tensor
    return groups


def containers(base: Base) -> set[str]:
    """The flat names of the modules that have layers in them: `lora_unet_…_attn1_to_out` beside `…_to_out_0`."""
    names = set()
    for layer in base.layers:
        prefix = "lora_unet_" if layer.unet else layer.kohya.removesuffix(layer.hf_flat)
        for name in (layer.hf, layer.ldm) if layer.unet else (layer.hf,):
            parts = name.split(".")
            names |= {prefix + "_".join(parts[:n]) for n in range(1, len(parts))}
    return names


def unread_words(tensors: Mapping[str, Tensor]) -> str:
    """The note of a consumer that takes a LoRA and leaves its bundled words alone."""
    words = ", ".join(bundled(tensors))
    return f"the word {words} in the file is not read, its embedding file is" if words else ""


def misfit(change: Change, shape: tuple[int, ...]) -> str | None:
    """Why a change cannot be made to a weight of this shape; None when it can. () fits all.

    Matrices of a convolution may lie flat, and those of a linear layer stand as a 1 x 1 convolution's.
    """
    if not isinstance(change, LoraWeights):
        try:
            out, inner = lycoris.shape_of(change)
        except (RuntimeError, IndexError, ValueError):
            return "its matrices cannot be multiplied"
        wanted = (shape[0], math.prod(shape[1:])) if shape else (out, inner)
        return None if (out, inner or wanted[1]) == wanted else f"it does not fit the layer's weight {list(shape)}"
    down, up = change.down, change.up
    if down.dim() not in (2, 4) or up.dim() not in (2, 4) or up.flatten(1).shape[1] != down.shape[0]:
        return f"up {list(up.shape)} and down {list(down.shape)} cannot be multiplied"
    if shape and (up.shape[0], down[0].numel()) != (shape[0], math.prod(shape[1:])):
        return f"up {list(up.shape)} and down {list(down.shape)} do not fit the layer's weight {list(shape)}"
    return None


def unlike(change: LoraWeights, shape: tuple[int, ...]) -> str | None:
    """Why two factors are not those that a layer of this shape has: [rank, in, k, k] and [out, rank, 1, 1] of a
    convolution, [rank, in] and [out, rank] of a linear layer. Of () they need only be alike.
    """
    down, up = change.down, change.up
    dims = len(shape) or down.dim()
    forms = (down.dim(), up.dim()) == (dims, dims) and set(up.shape[2:]) <= {1}
    if forms and (not shape or down.shape[2:] == shape[2:]):
        return None
    of = f" of a weight {list(shape)}" if shape else ""
    return f"down {list(down.shape)} and up {list(up.shape)} are not the factors{of}"


def change_of(parts: Mapping[str, Tensor], *, zero_means_rank: bool = False) -> Change | None:
    """What the leaves of a module mean; None where a matrix is missing, or alpha is not one number. Leaves that belong
    to no kind are left out."""
    if DOWN in parts and UP in parts:
        rank = len(parts[DOWN]) if parts[DOWN].dim() else 0
        told = parts.get(ALPHA)
        if told is not None and told.numel() != 1:
            return None
        alpha = float(rank) if told is None else float(told.float().item())
        return LoraWeights(parts[DOWN], parts[UP], alpha or float(rank * zero_means_rank), parts.get(DORA))
    leaves = {leaf: tensor for leaf, tensor in parts.items() if leaf in (ALPHA, *LYCORIS)}
    try:
        lycoris.kind_of(leaves)
    except UserError:
        return None
    return leaves


def left_over(parts: Iterable[str], change: Change) -> list[str]:
    """The leaves that the change does not use."""
    used = (DOWN, UP, ALPHA, DORA) if isinstance(change, LoraWeights) else (ALPHA, *change)
    return [leaf for leaf in parts if leaf not in used]


def _per_input(dora: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether `dora_scale` has one number for each input, the form that all consumers of DoRA share."""
    return dora is None or not shape or (dora.shape[0] == 1 and dora.numel() == shape[1])


def _equal(a: Tensor, b: Tensor) -> bool:
    """By value: a consumer may keep fp16 weights in fp32, and a 1 x 1 convolution's as a matrix."""
    if a is b:
        return True
    a, b = a.flatten(1), b.flatten(1)
    return a.shape == b.shape and bool(torch.equal(a.float(), b.float()))
