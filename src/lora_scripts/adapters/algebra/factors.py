"""ΔW as a thin product, and what can be told of it without ever forming it: norms, inner products, singular values.

All in float64. A convolution's weight is taken as the matrix [out, in · k · k], as everywhere in LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights


@dataclass(frozen=True)
class Factors:
    """ΔW = up @ down."""

    up: Tensor
    """[out, r] float64"""
    down: Tensor
    """[r, in] float64"""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def dense(self) -> Tensor:
        """ΔW, [out, in]."""
        return self.up @ self.down


@dataclass(frozen=True)
class Svd:
    """ΔW = u · diag(s) · vt, singular values falling."""

    u: Tensor
    """[out, k] float64, orthonormal columns"""
    s: Tensor
    """[k]"""
    vt: Tensor
    """[k, in], orthonormal rows"""


def of(weights: LoraWeights, strength: float = 1.0) -> Factors:
    """The factors of strength · (alpha / rank) · up @ down; the scale goes onto `up`."""
    scale = strength * weights.alpha / weights.rank
    return Factors(scale * weights.up.detach().double().flatten(1), weights.down.detach().double().flatten(1))


def stack(parts: Sequence[Factors]) -> Factors:
    """The exact sum of several ΔW: the ranks add up."""
    return Factors(torch.cat([p.up for p in parts], dim=1), torch.cat([p.down for p in parts]))


def svd(factors: Factors) -> Svd:
    """From the factors' QR decompositions and one small SVD of at most rank x rank."""
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    u, s, vt = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return Svd(q_up @ u, s, vt @ q_down.T)


def svd_dense(matrix: Tensor) -> Svd:
    """Of a matrix [out, in] that is no thin product, by the eigenvectors of its smaller Gram matrix.

    Many times as fast as a full SVD on a CPU. Values below 1e-8 of the largest are noise: the Gram matrix squares them.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    m = matrix.double() if wide else matrix.double().T
    values, vectors = torch.linalg.eigh(m @ m.T)
    s, u = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    vt = (u.T @ m) / s.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return Svd(u, s, vt) if wide else Svd(vt.T, s, u.T)


def inner(a: Factors, b: Factors) -> float:
    """<ΔWa, ΔWb>, the sum of the products of their entries: tr((Bᵃ)ᵀ Bᵇ · Aᵇ (Aᵃ)ᵀ)."""
    return ((a.up.T @ b.up) * (a.down @ b.down.T)).sum().item()


def core(a: Factors) -> Tensor:
    """[r, r] at most, of the singular values of ΔW, by QR: exact also where two large parts nearly cancel."""
    return torch.linalg.qr(a.up).R @ torch.linalg.qr(a.down.T).R.T


def norm(a: Factors) -> float:
    """Frobenius norm of ΔW."""
    return torch.linalg.norm(core(a)).item()


def distance(a: Factors, b: Factors) -> float:
    """Frobenius norm of ΔWa - ΔWb."""
    return norm(stack([a, Factors(-b.up, b.down)]))


def rank_for(s: Tensor, rank: int | None, energy: float | None = None) -> int:
    """How many singular values to keep: at most `rank`, no more than reach the share `energy` of Σ s², none of 0."""
    there = int((s > s[0] * 1e-12).sum()) if len(s) and s[0] > 0 else 0
    if energy is not None and there:
        shares = (s**2).cumsum(0) / (s**2).sum()
        there = min(there, int((shares < energy * (1 - 1e-12)).sum()) + 1)
    return there if rank is None else min(rank, there)


def kept(s: Tensor, rank: int) -> float:
    """The share of the energy Σ s² in the first `rank` values; 1 where there is none."""
    total = (s**2).sum().item()
    return (s[:rank] ** 2).sum().item() / total if total else 1.0


def cut(decomposed: Svd, rank: int) -> Factors:
    """The best ΔW of this rank (Eckart-Young); each factor takes the root of the singular values. Rank 0: zeros."""
    root = decomposed.s[: max(rank, 1)].sqrt() * (1.0 if rank else 0.0)
    return Factors(decomposed.u[:, : max(rank, 1)] * root, root[:, None] * decomposed.vt[: max(rank, 1)])


def balanced(factors: Factors) -> Factors:
    """The same ΔW with factors of like size, by a power of two, which changes no digit: neither falls below fp16."""
    up, down = factors.up.abs().max().item(), factors.down.abs().max().item()
    if not (up and down):
        return factors
    shift = 2.0 ** round(math.log2(down / up) / 2)
    return Factors(factors.up * shift, factors.down / shift)


def as_lora(factors: Factors, in_shape: Sequence[int], scale: float = 1.0) -> LoraWeights:
    """float64 weights with alpha / rank = `scale`, a power of two. `in_shape` is the layer's [in] or [in, k, k]."""
    down = factors.down.reshape(factors.rank, *in_shape)
    up = (factors.up / scale).reshape(*factors.up.shape, *(1,) * (down.dim() - 2))
    return LoraWeights(down, up, scale * factors.rank)
