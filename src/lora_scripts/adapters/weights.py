"""The change that a LoRA makes to one layer, as tensors: what readers of files give and what the algebra works on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_scripts.errors import UserError

SHORTEST = 1e-12
"""The least length that a column or row of W + ΔW counts as having in a DoRA: one of zeros alone stays zeros."""


@dataclass(frozen=True)
class LoraWeights:
    """One module's LoRA; ΔW = (alpha / rank) · up @ down."""

    down: Tensor
    """[rank, in], of a convolution [rank, in, k, k]"""
    up: Tensor
    """[out, rank], of a convolution [out, rank, 1, 1]"""
    alpha: float
    dora: Tensor | None = None
    """Of a DoRA: the length m of every column of W + ΔW, [1, in] or [1, in, 1, 1], or of every row, [out, 1] or
    [out, 1, 1, 1]; see `adapters.algebra.bake`."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of ΔW, [out, in], or of a convolution [out, in, k, k]."""
        return self.up.shape[0], *self.down.shape[1:]

    @property
    def by_output(self) -> bool:
        """Of a DoRA: that it has a length for each output, as PEFT's, in place of one for each input."""
        return (
            self.dora is not None
            and self.dora.dim() > 1
            and self.dora.shape[0] == self.up.shape[0] == self.dora.numel()
        )


def uniform(modules: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """The same ΔW with one rank and one alpha: padded with zeros to the largest rank, `up` rescaled where the scale
    differs.

    diffusers misapplies a file whose alphas differ, without an error. Modules that agree come back as they are.
    """
    ranks, scales = {w.rank for w in modules.values()}, {w.alpha / w.rank for w in modules.values()}
    if len(ranks) < 2 and len(scales) < 2:
        return dict(modules)
    rank, scale = max(ranks), scales.pop() if len(scales) == 1 else 1.0
    result = {}
    for path, weights in modules.items():
        down, up = weights.down, weights.up
        more = rank - weights.rank
        if weights.alpha / weights.rank != scale:
            up = rescaled(up, weights.alpha / weights.rank / scale)
        if more:
            down = torch.cat([down, down.new_zeros(more, *down.shape[1:])])
            up = torch.cat([up, up.new_zeros(up.shape[0], more, *up.shape[2:])], dim=1)
        result[path] = LoraWeights(down, up, scale * rank, weights.dora)
    return result


def rescaled(up: Tensor, factor: float) -> Tensor:
    """`factor` · `up` in its own type, or in float32 where that would round it: ΔW stays what the file says."""
    if factor == 1:
        return up
    exact = up.double() * factor
    own = exact.to(up.dtype)
    return own if torch.equal(own.double(), exact) else exact.float()


def folded(weights: LoraWeights) -> LoraWeights:
    """The same change with alpha = rank: alpha / rank goes into `up`."""
    if weights.alpha == weights.rank:
        return weights
    up = (weights.up.double() * (weights.alpha / weights.rank)).to(weights.up.dtype)
    return LoraWeights(weights.down, up, float(weights.rank), weights.dora)


def check(name: str, weights: LoraWeights) -> None:
    """UserError unless the shapes fit each other and every value is a finite number."""
    check_shapes(name, weights)
    tensors = (weights.down, weights.up, weights.dora)
    if not (math.isfinite(weights.alpha) and all(finite(tensor) for tensor in tensors if tensor is not None)):
        raise UserError(
            f"{name} holds values that are not finite numbers", hint="the file is spoilt; take an earlier one"
        )


def halved(up: Tensor, down: Tensor) -> bool:
    """Whether a LoRA's layer has just twice as many rows as columns."""
    return up.dim() == down.dim() == 2 and up.shape[0] == 2 * down.shape[1]


def turned(weights: LoraWeights) -> LoraWeights:
    """The same of a layer whose two halves of rows stand the other way round."""
    up, dora = torch.cat(weights.up.chunk(2)[::-1]), weights.dora
    if dora is not None and weights.by_output:
        dora = torch.cat(dora.chunk(2)[::-1])
    return replace(weights, up=up, dora=dora)


def finite(tensor: Tensor) -> bool:
    """Also of fp8, for which torch has no test."""
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def check_shapes(name: str, weights: LoraWeights) -> None:
    down, up = weights.down.shape, weights.up.shape
    fits = (
        len(down) == len(up)
        and len(down) in (2, 4)
        and down[0] == up[1]
        and 0 not in (*down, *up)
        and set(up[2:]) <= {1}
    )
    if not fits:
        text = f"{name}: down {list(down)} and up {list(up)} do not fit each other"
        raise UserError(text, hint="down is [rank, in, …] and up is [out, rank, …]")
