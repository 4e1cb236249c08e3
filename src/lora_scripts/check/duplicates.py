"""Copies of one picture in a set: the same file, the same pixels, or nearly the same picture; and mirrored ones.

Candidates come from the low frequencies of every picture (8 x 8 values of its cosine transform, as perceptual hashes
take them, but not rounded to bits: so crops and other pictures lie farther apart), all pairs by one matrix product.
`align` then lays the candidates over each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lora_scripts.check.align import GRID, compare
from lora_scripts.check.facts import PictureFacts

Pairs = NDArray[np.intp]

_LOW = 8
_ALIKE = 0.77
"""Correlation of the low frequencies from which on a pair is looked at. Crops by 5 % a side stay above 0.8."""
_LIKENESS, _WORST = 0.85, 0.5
"""`align.Match` of copies: different pictures of one thing start at a worst difference of about 0.75."""
_PLAIN = 3.0
"""Grey values of deviation below which a picture is too empty to be compared."""
_BLOCK = 2048


@dataclass(frozen=True)
class Copies:
    """Names by cluster, the best picture of each first."""

    exact: list[list[str]] = field(default_factory=list)
    """The same file or the same pixels."""
    near: list[list[str]] = field(default_factory=list)
    """Re-saved, resized, cropped a little, a little brighter. One of each exact cluster stands for it."""
    mirrored: list[list[str]] = field(default_factory=list)
    """Pairs, one being the other from left to right."""


def find(facts: Sequence[PictureFacts]) -> Copies:
    """Every cluster among the readable pictures."""
    ranked = sorted((f for f in facts if f.readable and f.problem is None), key=quality, reverse=True)
    exact = _clusters(len(ranked), _same(ranked))
    single = [ranked[i] for i in sorted({group[0] for group in exact})]
    grids = np.array([f.colours() for f in single]).reshape(-1, GRID, GRID, 3)
    low, mirror = _frequencies(grids), _frequencies(grids[:, :, ::-1])
    near = _clusters(len(single), _verified(grids, grids, _candidates(low, low)))
    head = {member: group[0] for group in near for member in group}
    heads = sorted(set(head.values()))
    turned = _verified(grids[heads], grids[heads][:, :, ::-1], _candidates(low[heads], mirror[heads]))
    return Copies(
        [[ranked[i].name for i in group] for group in exact if len(group) > 1],
        [[single[i].name for i in group] for group in near if len(group) > 1],
        [[single[heads[i]].name, single[heads[j]].name] for i, j in turned],
    )


def quality(facts: PictureFacts) -> tuple[float, float, float, float, str]:
    """To sort by: detail before size, then blocks, then bytes. Enlarging adds no detail, so it is no gain."""
    width, height = facts.size
    lacking = [odds for odds in (facts.sharp.blurred, facts.sharp.enlarged) if odds is not None and odds > 0]
    area = width * height / 4 ** len(lacking)
    return (area, -max(0.0, round(facts.blocking, 1)), facts.length / max(1, width * height), facts.length, facts.name)


def _same(facts: Sequence[PictureFacts]) -> Iterator[tuple[int, int]]:
    first: dict[str, int] = {}
    for i, fact in enumerate(facts):
        for key in (fact.sha256, fact.pixels):
            yield first.setdefault(key, i), i


def _frequencies(grids: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit vectors [pictures, 63]; zero for pictures without content."""
    from scipy.fft import dctn

    grey = grids.mean(-1)
    values = dctn(grey, axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW]
    down, across = np.mgrid[:_LOW, :_LOW]
    # natural pictures have their power in the lowest frequencies, which tell least
    values = (values * np.sqrt(1 + np.hypot(down, across))).reshape(len(grids), _LOW * _LOW)[:, 1:]
    length = np.linalg.norm(values, axis=1, keepdims=True)
    plain = grey.std(axis=(1, 2))[:, None] < _PLAIN
    return np.where(plain, 0, values / np.maximum(length, 1e-6)).astype(np.float32)


def _candidates(a: NDArray[np.float32], b: NDArray[np.float32]) -> Pairs:
    """Pairs (i, j), i < j, whose vectors correlate: [pairs, 2]. Memory is a strip of the matrix at a time."""
    strips = [np.zeros((0, 2), np.intp)]
    for start in range(0, len(a), _BLOCK):
        i, j = np.nonzero(a[start : start + _BLOCK] @ b.T >= _ALIKE)
        i = i + start
        strips.append(np.stack([i, j], 1)[i < j])
    return np.concatenate(strips)


def _verified(a: NDArray[np.uint8], b: NDArray[np.uint8], pairs: Pairs) -> list[tuple[int, int]]:
    copies: list[tuple[int, int]] = []
    for start in range(0, len(pairs), _BLOCK):
        part = pairs[start : start + _BLOCK]
        match = compare(a[part[:, 0]], b[part[:, 1]])
        good = (match.likeness >= _LIKENESS) & (match.worst <= _WORST)
        copies += [(int(i), int(j)) for i, j in part[good]]
    return copies


def _clusters(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Each index with the later ones that are copies of it, and of no earlier one.

    Not everything that hangs together: in a row of film frames the last one is no copy of the first.
    """
    copies: dict[int, set[int]] = {}
    for i, j in pairs:
        copies.setdefault(min(i, j), set()).add(max(i, j))
    taken: set[int] = set()
    groups = []
    for i in range(count):
        if i not in taken:
            members = sorted(copies.get(i, set()) - taken - {i})
            taken.update(members)
            groups.append([i, *members])
    return groups
