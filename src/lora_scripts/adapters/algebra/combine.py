"""Several LoRAs into one: module path -> weights, in and out. No files here.

`svd` is exact concatenation cut to a rank (Eckart and Young 1936). TIES is Yadav et al. 2023 (arXiv:2306.01708), DARE
is Yu et al. 2023 (arXiv:2311.03099), both on ΔW itself and then cut to a rank: on the factors, as some tools do it, the
entries that are trimmed and the signs that are counted depend on how a rotation of the rank happened to fall out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.algebra.factors import Factors, Svd
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError, raise_all
from lora_scripts.seeds import seed_of

Lora = Mapping[str, LoraWeights]
"""Module path -> weights."""


@dataclass(frozen=True)
class Method:
    """How to combine, and the numbers for it."""

    name: str = "concat"
    """concat, svd, linear, ties or dare"""
    rank: int | None = None
    """At most; None: what `default_rank` says."""
    energy: float | None = None
    """Of svd, ties and dare: of each module as much rank as keeps this share of Σ s²."""
    density: float = 0.5
    """Of ties and dare: the share of entries of ΔW that stay."""
    seed: int = 1
    """Of dare."""


@dataclass(frozen=True)
class Kept:
    """What became of one module."""

    rank: int
    share: float
    """Of the energy |ΔW|² that the method wanted; 1: all of it."""
    energy: float
    """|ΔW|² that the method wanted."""


@dataclass(frozen=True)
class Combined:
    weights: dict[str, LoraWeights]
    """float64, of one alpha / rank, which is a power of two; not yet of one rank."""
    kept: dict[str, Kept]

    @property
    def share(self) -> float:
        """Of the energy of all modules together."""
        total = sum(k.energy for k in self.kept.values())
        return sum(k.share * k.energy for k in self.kept.values()) / total if total else 1.0

    @property
    def worst(self) -> tuple[str, float]:
        """(module, share) where the least was kept."""
        path = min(self.kept, key=lambda p: self.kept[p].share)
        return path, self.kept[path].share


def check(loras: Sequence[Lora], names: Sequence[str], method: Method) -> None:
    """UserError, all faults at once: modules whose shapes differ between files, ranks that linear cannot add."""
    errors, first = [], dict[str, tuple[tuple[int, ...], str]]()
    for lora, name in zip(loras, names, strict=True):
        wrong = []
        for path, w in lora.items():
            seen, other = first.setdefault(path, (w.shape, name))
            if _plain(w.shape) != _plain(seen):
                wrong.append(f"{path} is {list(w.shape)} here and {list(seen)} in {other}")
        if wrong:
            more = f" (and {len(wrong) - 1} modules more)" if len(wrong) > 1 else ""
            errors.append(UserError(wrong[0] + more, file=name, hint="these LoRAs are for base models of other widths"))
    if method.name == "linear":
        ranks = sorted({w.rank for lora in loras for w in lora.values()})
        if len(ranks) > 1:
            hint = "use --method concat or svd, or lora-scripts resize first"
            errors.append(UserError(f"linear adds matrices of one rank, these have {ranks}", hint=hint))
    raise_all(errors)


def default_rank(loras: Sequence[Lora], method: Method) -> int:
    """svd: the largest rank of the files; ties and dare, whose ΔW is of full rank: the sum of the files' ranks."""
    ranks = [max(w.rank for w in lora.values()) for lora in loras]
    return max(ranks) if method.name == "svd" else sum(ranks)


def combine(
    loras: Sequence[Lora],
    strengths: Sequence[float],
    method: Method,
    *,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Combined:
    """One LoRA from several; `check` them first. A module that only some have counts as zero in the others.

    `told(done, total)` is called after each module.
    """
    paths = list(dict.fromkeys(path for lora in loras for path in lora))
    scale = _common_scale(loras, strengths)
    rank = method.rank
    if rank is None and method.energy is None:
        rank = default_rank(loras, method)
    weights, kept = {}, {}
    for number, path in enumerate(paths):
        having = [(i, lora[path]) for i, lora in enumerate(loras) if path in lora]
        parts = [factors.of(w, strengths[i]) for i, w in having]
        in_shape = having[0][1].down.shape[1:]
        if method.name == "concat":
            joined = factors.stack(parts)
            kept[path] = Kept(joined.rank, 1.0, factors.norm(joined) ** 2)
            weights[path] = factors.as_lora(joined, in_shape, scale)
        elif method.name == "linear":
            joined = linear([w for _, w in having], [strengths[i] for i, _ in having])
            kept[path] = Kept(joined.rank, 1.0, factors.norm(joined) ** 2)
            weights[path] = factors.as_lora(joined, in_shape)
        else:
            decomposed = _decomposed(path, parts, [i for i, _ in having], len(loras), method)
            size = factors.rank_for(decomposed.s, rank, method.energy)
            energy = (decomposed.s**2).sum().item()
            kept[path] = Kept(size, factors.kept(decomposed.s, size), energy)
            weights[path] = factors.as_lora(factors.balanced(factors.cut(decomposed, size)), in_shape)
        told(number + 1, len(paths))
    return Combined(weights, kept)


def linear(weights: Sequence[LoraWeights], strengths: Sequence[float]) -> Factors:
    """The weighted sum of the matrices themselves, as the common tools' "linear" does it (also PEFT's).

    Each takes the root of its strength · scale on both matrices, its sign on one. (Σ Bᵢ)(Σ Aᵢ) holds, beside the
    BᵢAᵢ that were asked for, the products of one file's B with another's A: it is not the sum of the ΔW.
    """
    ups, downs = [], []
    for w, strength in zip(weights, strengths, strict=True):
        scale = strength * w.alpha / w.rank
        root = math.sqrt(abs(scale))
        ups.append(math.copysign(root, scale) * w.up.double().flatten(1))
        downs.append(root * w.down.double().flatten(1))
    return Factors(sum(ups[1:], ups[0]), sum(downs[1:], downs[0]))


def ties(deltas: Sequence[Tensor], density: float) -> Tensor:
    """TIES of (already weighted) ΔW: trim each to its largest entries, elect a sign, mean of those that agree."""
    trimmed = torch.stack([_trim(delta, density) for delta in deltas])
    elected = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    agreeing = trimmed.sign() == elected
    return (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)


def dare(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """DARE: drops entries at random and divides the rest by the share that stays, so that the mean stays too."""
    stays = torch.bernoulli(torch.full_like(delta, density), generator=generator)
    return delta * stays / density


def _common_scale(loras: Sequence[Lora], strengths: Sequence[float]) -> float:
    """alpha / rank for the concatenation: a power of two (0.25 … 1) no larger than any strength · alpha / rank.

    So the matrices stand in the file as large as they stood before, or larger: none of their digits falls below fp16.
    """
    scales = [
        abs(s * w.alpha / w.rank) for lora, s in zip(loras, strengths, strict=True) for w in lora.values() if w.alpha
    ]
    return min(1.0, max(0.25, 2.0 ** math.floor(math.log2(min(scales, default=1.0)))))


def _decomposed(path: str, parts: Sequence[Factors], numbers: Sequence[int], files: int, method: Method) -> Svd:
    if method.name == "svd":
        return factors.svd(factors.stack(parts))
    if method.name == "ties":
        return factors.svd_dense(ties([p.dense() for p in parts], method.density))
    drops = (
        dare(p.dense(), method.density, _generator(method.seed, i, path)) for i, p in zip(numbers, parts, strict=True)
    )
    return factors.svd_dense(_sum(drops))


def _sum(tensors: Iterator[Tensor]) -> Tensor:
    total = next(tensors)
    for tensor in tensors:
        total += tensor
    return total


def _trim(delta: Tensor, density: float) -> Tensor:
    """Keeps the `density` · n entries that are largest; ties of size fall as topk lets them."""
    count = int(density * delta.numel())
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[torch.topk(delta.abs().flatten(), count).indices] = 1
    return delta * mask.view(delta.shape)


def _generator(seed: int, file: int, path: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(f"{seed}/{file}/{path}"))


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1 x 1 convolution and a linear layer are one matrix."""
    return shape[:2] if set(shape[2:]) <= {1} else shape
