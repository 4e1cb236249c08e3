"""A LoRA of another rank: the best one of that size, module by module (Eckart and Young 1936)."""

from __future__ import annotations

from collections.abc import Callable

from lora_scripts.adapters.algebra.combine import Combined, Lora, Method, combine
from lora_scripts.adapters.algebra.overlap import block_of


def resize(
    lora: Lora,
    *,
    rank: int | None,
    energy: float | None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Combined:
    """At most `rank`, and of each module no more than keeps the share `energy` of Σ s²: the best ΔW of that size."""
    return combine([lora], [1.0], Method("svd", rank=rank, energy=energy), told=told)


def ranks_by_block(resized: Combined) -> dict[str, tuple[int, float, int]]:
    """Block -> (smallest, mean, largest rank that was needed)."""
    blocks: dict[str, list[int]] = {}
    for path, kept in resized.kept.items():
        blocks.setdefault(block_of(path), []).append(kept.rank)
    return {block: (min(r), sum(r) / len(r), max(r)) for block, r in blocks.items()}
