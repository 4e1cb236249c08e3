"""Whether LoRAs get in each other's way: told per block before they are combined, from their thin factors alone.

Of two changes of one layer:
- cosine: <ΔWa, ΔWb> / (|ΔWa| |ΔWb|); 1 the same change, 0 nothing in common, -1 one takes back what the other does;
- overlap: how far they work in the same directions, whatever the sign: with P = ΔW ΔWᵀ (where it writes) and with
  P = ΔWᵀ ΔW (what it listens to), <Pa, Pb> / (|Pa| |Pb|), the geometric mean of both. That is the squared cosines
  between their singular directions, weighted by the squared singular values. 0: orthogonal; 1: the same directions with
  the same weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.algebra.combine import Lora
from lora_scripts.adapters.algebra.factors import Factors

FIGHTS = -0.1
"""A block fights below this cosine, if both changes are large in it."""
DOUBLES = 0.5
"""Above this cosine two LoRAs say the same thing twice."""
_LARGE = 0.25  # of the other's norm, in a block


@dataclass(frozen=True)
class Pair:
    """Two LoRAs in one block (or in all of them)."""

    a: int
    b: int
    """Numbers of the files."""
    block: str
    cosine: float
    overlap: float
    norms: tuple[float, float]
    """|ΔWa| and |ΔWb| in the block, strengths counted."""
    modules: int
    """That both have."""

    @property
    def verdict(self) -> str:
        """ "fights", "doubles" or ""."""
        small, large = sorted(self.norms)
        if small < _LARGE * large or not small:
            return ""
        return "fights" if self.cosine <= FIGHTS else "doubles" if self.cosine >= DOUBLES else ""


@dataclass(frozen=True)
class Overlap:
    pairs: list[Pair]
    """Of every two files, every block that both have."""
    whole: list[Pair]
    """Of every two files, all blocks together; block is "all"."""
    norms: list[float]
    """|ΔW| of each file over all its modules, strengths counted."""
    together: float
    """|ΔW| of their sum."""
    suggested: list[float]
    """Strengths at which each comes out, in its own direction, as strong as it would alone."""


def block_of(path: str) -> str:
    """The block of a module path: "unet.down_blocks.1", "unet.mid_block", "transformer.layers.3", "text_encoder"."""
    part, *rest = path.split(".")
    if part.startswith("text_encoder"):
        return part
    if part not in ("unet", "transformer"):  # a row of layers that are numbered through
        number = next((i for i, word in enumerate(rest) if word.isdecimal()), None)
        return part if not number else ".".join(rest[number - 1 : number + 1])
    return ".".join([part, rest[0], *(rest[1:2] if rest[0] not in ("mid_block", "middle_block") else [])])


def measure(loras: Sequence[Lora], strengths: Sequence[float]) -> Overlap:
    """Every two of the LoRAs, at their strengths, by block; norms; and strengths to try."""
    parts = [{path: factors.of(w, s) for path, w in lora.items()} for lora, s in zip(loras, strengths, strict=True)]
    gram = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    pairs, whole = [], []
    for i, one in enumerate(parts):
        gram[i, i] = sum(factors.inner(f, f) for f in one.values())
        for j in range(i):
            rows = _blocks(parts[j], one, j, i)
            pairs += rows
            dot = sum(row.cosine * math.prod(row.norms) for row in rows)
            gram[i, j] = gram[j, i] = dot
            whole.append(_together(rows, dot, parts[j], one, j, i))
    norms = [math.sqrt(max(value, 0.0)) for value in gram.diagonal().tolist()]
    together = math.sqrt(max(gram.sum().item(), 0.0))
    return Overlap(pairs, whole, norms, together, suggest(gram, strengths))


def suggest(gram: torch.Tensor, strengths: Sequence[float]) -> list[float]:
    """Strengths f · strength, f from 0 to 1, so that each LoRA's change, seen along itself, is what it would be alone.

    `gram[i, j]` = <ΔWi, ΔWj> at the given strengths. Solves Σj max(Gij, 0) fj = Gii, of all solutions the smallest. A
    fight is left as it is: making both louder does not settle it. Orthogonal: as asked; two the same: half of each.
    """
    shared = gram.clamp_min(0)
    scale = shared.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    shared = shared / scale[:, None] / scale  # cosines: the solution then does not favour the larger file
    f = torch.linalg.pinv(shared, rtol=1e-6) @ scale / scale
    return [s * min(max(x, 0.0), 1.0) for s, x in zip(strengths, f.tolist(), strict=True)]


def _blocks(a: Mapping[str, Factors], b: Mapping[str, Factors], i: int, j: int) -> list[Pair]:
    """A row for each block with modules in both."""
    modules = defaultdict[str, list[str]](list)
    for path in a:
        if path in b:
            modules[block_of(path)].append(path)
    rows = []
    for block, paths in modules.items():
        dots, norms_a, norms_b, overlaps = [], [], [], []
        for path in paths:
            dots.append(factors.inner(a[path], b[path]))
            norms_a.append(math.sqrt(max(factors.inner(a[path], a[path]), 0)))
            norms_b.append(math.sqrt(max(factors.inner(b[path], b[path]), 0)))
            overlaps.append(overlap(a[path], b[path]))
        weights = [x * y for x, y in zip(norms_a, norms_b, strict=True)]
        norms = (math.hypot(*norms_a), math.hypot(*norms_b))
        cosine = sum(dots) / math.prod(norms) if all(norms) else 0.0
        mean = sum(o * w for o, w in zip(overlaps, weights, strict=True)) / (sum(weights) or 1.0)
        rows.append(Pair(i, j, block, cosine, mean, norms, len(paths)))
    return rows


def _together(
    rows: Sequence[Pair], dot: float, a: Mapping[str, Factors], b: Mapping[str, Factors], i: int, j: int
) -> Pair:
    norms = tuple(math.sqrt(sum(factors.inner(f, f) for f in lora.values())) for lora in (a, b))
    weights = [math.prod(row.norms) for row in rows]
    mean = sum(row.overlap * w for row, w in zip(rows, weights, strict=True)) / (sum(weights) or 1.0)
    cosine = dot / math.prod(norms) if all(norms) else 0.0
    return Pair(i, j, "all", cosine, mean, (norms[0], norms[1]), sum(row.modules for row in rows))


def overlap(a: Factors, b: Factors) -> float:
    """How far two ΔW work in the same directions, from 0 to 1; see the module's text."""
    one, two = factors.svd(a), factors.svd(b)
    if not (one.s.any() and two.s.any()):
        return 0.0
    weights = torch.outer(one.s**2, two.s**2)
    sizes = torch.linalg.norm(one.s**2) * torch.linalg.norm(two.s**2)
    writes = (weights * (one.u.T @ two.u) ** 2).sum() / sizes
    listens = (weights * (one.vt @ two.vt.T) ** 2).sum() / sizes
    return min(1.0, math.sqrt(writes.item() * listens.item()))
