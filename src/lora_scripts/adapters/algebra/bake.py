"""DoRA (Liu et al. 2024, arXiv:2402.09353) baked to a plain LoRA.

A DoRA's layer is W' = m · (W + ΔV) / |W + ΔV|, with ΔV = (alpha / rank) · up @ down and the norm taken over every
column of the weight: one length m for each input, `dora_scale` [1, in] (of a convolution [1, in, 1, 1], the column
being all that multiplies one input channel). PEFT's has one for each row, [out, 1]. What a plain LoRA has to add is
ΔW = W' - W, which is of full rank as a rule: the best matrix of a given rank (Eckart and Young 1936) takes its place,
and the share of its energy that stays is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import SHORTEST, LoraWeights
from lora_scripts.errors import UserError


@dataclass(frozen=True)
class Baked:
    """A module as a plain LoRA."""

    weights: LoraWeights
    energy: float
    """Share of |ΔW|² (Frobenius) that stays; 1: all of it."""


def change(weights: LoraWeights, base: Tensor) -> Tensor:
    """ΔW of a DoRA on its frozen weight, float64, in the weight's shape. UserError when `dora_scale` does not fit."""
    assert weights.dora is not None
    frozen = base.double()
    moved = frozen + factors.of(weights).dense().view(base.shape)
    axis = axis_of(weights.dora, base.shape)
    shape = [1] * base.dim()
    shape[axis] = base.shape[axis]
    norms = moved.transpose(0, axis).flatten(1).norm(dim=1).clamp(min=SHORTEST)
    return moved * (weights.dora.double().reshape(shape) / norms.reshape(shape)) - frozen


def axis_of(lengths: Tensor, shape: Sequence[int]) -> int:
    """Of which side of a weight of this shape `dora_scale` holds lengths: 0 rows, 1 columns. UserError for neither."""
    out, inner = shape[:2]
    if lengths.numel() == out and lengths.dim() > 1 and lengths.shape[0] == out:
        return 0  # PEFT's, and lycoris-lora's by default
    if lengths.numel() == inner and lengths.shape[0] in (1, inner):
        return 1
    shapes = f"dora_scale {list(lengths.shape)} for a weight {list(shape)}"
    raise UserError(f"{shapes}: neither one number an input nor one an output", hint="this is for another base")


def bake(weights: LoraWeights, base: Tensor, rank: int) -> Baked:
    """A plain LoRA of at most `rank` that changes `base` as the DoRA does, as nearly as that rank can; alpha = rank."""
    wanted = change(weights, base)
    found = factors.svd_dense(wanted.flatten(1))
    use = max(1, factors.rank_for(found.s, rank))
    plain = factors.as_lora(factors.cut(found, use), wanted.shape[1:])
    return Baked(plain, factors.kept(found.s, use))
