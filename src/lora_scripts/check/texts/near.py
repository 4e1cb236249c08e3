"""Texts that are nearly the same, found without comparing each with each: MinHash in bands (Broder 1997)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

SHINGLE = 4
"""Words that stand together in one piece of a text."""
HASHES, BANDS = 64, 16
"""Two texts that share eight of ten pieces come together in one band of four hashes with 99.98 %."""
ALIKE = 0.8
"""Share of pieces that two texts have in common from which on they count as nearly the same (Jaccard)."""
_PRIME = np.uint64((1 << 31) - 1)


def clusters(texts: Sequence[str]) -> list[list[int]]:
    """Groups of texts each of which is nearly the same as another of its group; a function of the texts alone."""
    pieces = [_pieces(text) for text in texts]
    rng = np.random.default_rng(0)
    a = rng.integers(1, int(_PRIME), HASHES, dtype=np.uint64)
    b = rng.integers(0, int(_PRIME), HASHES, dtype=np.uint64)
    rows = HASHES // BANDS
    buckets: dict[tuple[int, bytes], int] = {}
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, own in enumerate(pieces):
        if not len(own):
            continue
        least = ((own[:, None] * a + b) % _PRIME).min(0)  # [HASHES]; products of 31 bits fit into 64
        for band in range(BANDS):
            key = (band, least[band * rows : (band + 1) * rows].tobytes())
            other = buckets.setdefault(key, i)
            if other != i and root(other) != root(i) and _shared(pieces[other], own) >= ALIKE:
                parent[root(i)] = root(other)
    groups: dict[int, list[int]] = {}
    for i in range(len(texts)):
        groups.setdefault(root(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _pieces(text: str) -> np.ndarray:
    """Hashes of all runs of SHINGLE words, below 2^31, each once; of a shorter text its whole."""
    words = text.lower().split()
    count = max(1, len(words) - SHINGLE + 1) if words else 0
    runs = {zlib.crc32(" ".join(words[i : i + SHINGLE]).encode()) >> 1 for i in range(count)}
    return np.array(sorted(runs), dtype=np.uint64)


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """The share of pieces in common, of all (Jaccard)."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)
