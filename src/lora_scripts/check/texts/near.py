"""Texts that are nearly the same, found without comparing each with each: MinHash in bands (Broder 1997)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from lora_scripts.data.texts.records import words_of

SHINGLE = 4
"""Words that stand together in one piece of a text."""
HASHES, BANDS = 64, 16
"""Two texts that share eight of ten pieces come together in one band of four hashes with 99.98 %."""
ALIKE = 0.8
"""Share of pieces that two texts have in common from which on they count as nearly the same (Jaccard)."""
_PRIME = np.uint64((1 << 31) - 1)
_DRAWN = np.random.default_rng(0).integers(1, int(_PRIME), (2, HASHES), dtype=np.uint64)


def signature(text: str) -> np.ndarray:
    """What is kept of a text, uint32 [HASHES]; of one without words [0]."""
    pieces = _pieces(text)
    if not len(pieces):
        return np.empty(0, np.uint32)
    factor, offset = _DRAWN
    least: np.ndarray = ((pieces[:, None] * factor + offset) % _PRIME).min(0)  # products of 31 bits fit into 64
    return least.astype(np.uint32)


def clusters(signatures: Sequence[np.ndarray], text: Callable[[int], str]) -> list[list[int]]:
    """Groups of texts each of which is nearly the same as another of its group.

    `text` gives one again, to be compared: only those whose signatures meet.
    """
    rows = HASHES // BANDS
    buckets: dict[tuple[int, bytes], int] = {}
    parent = list(range(len(signatures)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, own in enumerate(signatures):
        seen: dict[int, bool] = {}
        for band in range(BANDS if len(own) else 0):
            other = buckets.setdefault((band, own[band * rows : (band + 1) * rows].tobytes()), i)
            if other == i or root(other) == root(i):
                continue
            if other not in seen:
                seen[other] = _shared(_pieces(text(other)), _pieces(text(i))) >= ALIKE
            if seen[other]:
                parent[root(i)] = root(other)
    groups: dict[int, list[int]] = {}
    for i in range(len(signatures)):
        groups.setdefault(root(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _pieces(text: str) -> np.ndarray:
    """Hashes of all runs of SHINGLE words, below 2^31, each once; of a shorter text its whole."""
    words = words_of(text)
    count = max(1, len(words) - SHINGLE + 1) if words else 0
    runs = {zlib.crc32(" ".join(words[i : i + SHINGLE]).encode()) >> 1 for i in range(count)}
    return np.array(sorted(runs), dtype=np.uint64)


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """The share of pieces in common, of all (Jaccard)."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)
