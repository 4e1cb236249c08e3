"""Uniform bars around a picture, and the blocks of a strongly compressed JPEG."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LIKE = 10
"""Grey values within which a bar has one colour; JPEG needs some."""
_UNLIKE = 24
"""Grey values by which the picture differs from the bar where it begins."""
_THIN, _THICK = 0.015, 0.35
"""Of the side, for one bar."""
_LUMINANCE = 3688
"""Sum of the table of quality 50."""
_EDGE = 5
"""Lines within which the picture sets in: JPEG frays the edge of a bar."""
_STRAIGHT, _STRAIGHT_PAIR = 0.6, 0.25
"""The part of its edge that must be straight; less is asked of two equal bars."""


@dataclass(frozen=True)
class Border:
    """Bars, as shares of the width (left, right) and of the height (top, bottom)."""

    left: float
    top: float
    right: float
    bottom: float
    sure: float
    """Two bars of one colour are hardly ever meant; a single one may be a wall or a sky."""

    def content(self, size: tuple[int, int], margin: int) -> tuple[int, int, int, int]:
        """The box of what is no bar, in pixels of a picture of `size`, with `margin` px taken off beside each bar."""
        width, height = size
        edges = [
            round(share * side) + (margin if share else 0)
            for share, side in zip((self.left, self.top, self.right, self.bottom), (width, height) * 2, strict=True)
        ]
        return edges[0], edges[1], width - edges[2], height - edges[3]


def border(pixels: NDArray[np.uint8]) -> Border | None:
    """The bars of a picture [h, w, 3] that end along a straight line; None without any."""
    sides = [pixels.transpose(1, 0, 2), pixels, pixels[:, ::-1].transpose(1, 0, 2), pixels[::-1]]
    bars = [_bar(lines) for lines in sides]
    paired = [_equal(bars[i], bars[(i + 2) % 4]) for i in range(4)]
    shares = [
        bar.depth / len(lines) if bar.straight >= (_STRAIGHT_PAIR if twin else _STRAIGHT) else 0.0
        for bar, lines, twin in zip(bars, sides, paired, strict=True)
    ]
    if not any(shares):
        return None
    left, top, right, bottom = shares
    twins = any(shares[i] and shares[i + 2] and _one_colour(bars[i], bars[i + 2]) for i in (0, 1))
    return Border(left, top, right, bottom, 0.9 if twins else 0.4)


class _Bar(NamedTuple):
    depth: int
    """Lines."""
    straight: float
    """The part of its inner edge where the picture sets in at once; 0 for no bar."""
    colour: NDArray[np.float32]


def _equal(a: _Bar, b: _Bar) -> bool:
    return abs(a.depth - b.depth) <= 2 + 0.1 * max(a.depth, b.depth) and _one_colour(a, b)


def _one_colour(a: _Bar, b: _Bar) -> bool:
    return bool(np.abs(a.colour - b.colour).max() <= _LIKE)


def _bar(lines: NDArray[np.uint8]) -> _Bar:
    """Lines of one colour from the start of [lines, pixels, 3] on."""
    colour = np.median(lines[0], axis=0).astype(np.float32)
    limit = int(len(lines) * _THICK)
    thin = max(3, math.ceil(len(lines) * _THIN))
    if not _plain(_off(lines[:thin], colour)).all():
        return _Bar(0, 0.0, colour)
    off = _off(lines[: limit + 2 * _EDGE], colour)
    plain = _plain(off)
    depth = int(np.argmin(plain)) if not plain.all() else len(plain)
    if depth > limit:
        return _Bar(depth, 0.0, colour)
    # an object on plain ground touches the ground's end in a few places only, a bar ends everywhere at once
    edge = off[depth : depth + _EDGE] >= _UNLIKE
    stays = np.median(off[depth + _EDGE : depth + 2 * _EDGE], axis=0) >= _LIKE
    straight = float((edge.any(0) & stays).mean())
    depth += int(np.argmax(edge.mean(1) >= straight / 2))
    return _Bar(depth, straight, colour)


def _off(lines: NDArray[np.uint8], colour: NDArray[np.float32]) -> NDArray[np.int16]:
    """How far each pixel is from a colour, in the channel where it is farthest: [lines, pixels]."""
    return np.abs(lines.astype(np.int16) - colour.astype(np.int16)).max(-1)


def _plain(off: NDArray[np.int16]) -> NDArray[np.bool_]:
    return (off <= _LIKE).mean(1) >= 0.97


def jpeg_quality(data: bytes) -> int | None:
    """The quality, 1 … 100, whose table of luminance comes nearest, by libjpeg's scaling of ITU T.81, K.1."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        table = getattr(image, "quantization", {}).get(0)
    if not table:
        return None
    scale = 100 * sum(table) / _LUMINANCE
    return max(1, min(100, round(5000 / scale if scale > 100 else (200 - scale) / 2)))


def blocking(grey: NDArray[np.uint8]) -> float:
    """Steps between 8 x 8 blocks that are higher than the steps beside them, in grey values; about 0 without blocks.

    The grid may lie anywhere, as in a crop. Steps are capped, so that a few strong edges do not speak for the whole.
    """
    return min(_grid_steps(grey), _grid_steps(grey.T))


def _grid_steps(grey: NDArray[np.uint8]) -> float:
    if grey.shape[1] < 64:
        return 0.0
    rows = grey[:: max(1, len(grey) // 256)].astype(np.int16)
    steps = np.minimum(np.abs(np.diff(rows, axis=1)), 16).mean(0)  # [w - 1]
    excess = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    count = len(excess) // 8 * 8
    phases = excess[:count].reshape(-1, 8)
    means = np.median(phases, axis=0) if len(phases) >= 8 else phases.mean(0)
    best = int(np.argmax(means))
    others = np.delete(means, [(best - 1) % 8, best, (best + 1) % 8])
    return float(means[best] - np.abs(others).max())
