"""The LoRA between a base and a fine-tuned model: one layer's difference -> its best thin product. No files here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.algebra.merge import TINY, UNIT
from lora_scripts.adapters.weights import LoraWeights

_SAFETY = 1.5  # above the expected largest singular value of pure rounding noise
_FLOOR = 1e-6  # of the largest singular value: below it the decomposition itself is noise (see factors.svd_dense)


@dataclass(frozen=True)
class Extracted:
    """One layer."""

    weights: LoraWeights
    """float64, alpha = rank."""
    effective: int
    """Singular values above what rounding alone would give: the rank of the difference."""
    rank: int
    """That were kept."""
    share: float
    """Of |difference|² that is kept."""
    energy: float
    """|difference|²"""


def extract(tuned: Tensor, base: Tensor, *, rank: int | None, energy: float | None) -> Extracted | None:
    """The difference of two weights of one shape, at most of `rank`, no more of it than the share `energy` needs.

    None where it is no larger than the rounding of the two types. Nothing that rounding may have made is kept.
    """
    difference = tuned.double() - base.double()
    matrix = difference.flatten(1)
    total = (matrix**2).sum().item()
    if not total:
        return None
    decomposed = factors.svd_dense(matrix)
    floor = max(noise(tuned, base), _FLOOR * decomposed.s[0].item())
    effective = int((decomposed.s > floor).sum())
    if not effective:
        return None
    signal = decomposed.s[:effective]
    size = factors.rank_for(signal, rank, energy)
    weights = factors.as_lora(factors.balanced(factors.cut(decomposed, size)), tuned.shape[1:])
    return Extracted(weights, effective, size, (signal[:size] ** 2).sum().item() / total, total)


def noise(tuned: Tensor, base: Tensor) -> float:
    """The largest singular value that the rounding of both weights is expected to give.

    Rounding errors are spread evenly over a step, so their variance is step² / 12; a matrix [m, n] of independent
    errors has its largest singular value near deviation · (√m + √n) (Bai and Yin 1988).
    """
    rows, columns = tuned.shape[0], tuned[0].numel()
    variance = sum((step(w) ** 2).mean().item() / 12 for w in (tuned, base))
    return _SAFETY * math.sqrt(variance) * (math.sqrt(rows) + math.sqrt(columns))


def step(values: Tensor) -> Tensor:
    """The distance between neighbours of each value in its type; float64."""
    exponent = torch.frexp(values.double().abs()).exponent - 1
    size = torch.ldexp(torch.full_like(exponent, 2 * UNIT[values.dtype], dtype=torch.float64), exponent)
    return torch.where(values == 0, 2 * TINY[values.dtype], size.clamp_min(2 * TINY[values.dtype]))


def missing_attention(weights: dict[str, LoraWeights], shapes: Mapping[str, Sequence[int]]) -> dict[str, LoraWeights]:
    """Zeros for q, k, v and out of a second text encoder where only some of a block changed.

    A1111 leaves out a block of which one is missing, without an error.
    """
    found = {}
    for path in weights:
        block, attention, _ = path.partition(".self_attn.")
        if attention and path.startswith("text_encoder_2."):
            for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
                name = f"{block}.self_attn.{leaf}"
                if name not in weights:
                    out, inner = shapes[name][:2]
                    zeros = torch.zeros(1, inner, dtype=torch.float64), torch.zeros(out, 1, dtype=torch.float64)
                    found[name] = LoraWeights(*zeros, 1.0)
    return found
