"""Whether two pictures are one: crops of it are laid over each other, and what differs then is judged by place.

A perceptual hash says which pairs are worth this. By itself it cannot tell a crop of a picture from another picture of
the same composition, because both change a few of its bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

GRID = 48
"""Pixels of a side of the small pictures that are compared, whatever the shape of the large ones."""
_BATCH = 256
_REACH = 0.16
"""The largest change of scale or shift, in half sides. A crop of 5 % at one side needs 0.05, of 5 % at both 0.11."""
_TILES = 6
_SLACK = 6.0
"""Grey values by which small copies of one picture may differ anywhere: JPEG and resampling."""


@dataclass(frozen=True)
class Match:
    """How alike the pairs are after alignment; each [pairs]."""

    likeness: Floats
    """Correlation of the luminance where both show something."""
    worst: Floats
    """The difference in the tile where it is largest, in units of the picture's own contrast."""


def compare(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Match:
    """Pictures `a` and `b`, pair by pair: RGB [pairs, GRID, GRID, 3]."""
    parts = [_compare(a[i : i + _BATCH], b[i : i + _BATCH]) for i in range(0, len(a), _BATCH)]
    empty = np.zeros(0, np.float32)
    return (
        Match(*(np.concatenate([empty, *column]) for column in zip(*parts, strict=True)))
        if parts
        else Match(empty, empty)
    )


def _compare(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    first, second = a.astype(np.float32), b.astype(np.float32)
    grey_a, grey_b = first.mean(-1), second.mean(-1)
    place = np.zeros((len(a), 4), np.float32)
    for sigma, step, rounds in ((2.0, 2, 6), (0.8, 1, 4)):
        coarse_a, coarse_b = (_smooth(grey, sigma)[:, ::step, ::step] for grey in (grey_a, grey_b))
        place = _align(coarse_a, coarse_b, place, rounds)
    return _differences(first, second, place)


def _smooth(stack: Floats, sigma: float) -> Floats:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(stack, (0, sigma, sigma), mode="nearest")


def _weights(scale: Floats, shift: Floats, side: int) -> Floats:
    """Linear interpolation along one axis as matrices [pairs, side out, side in]; rows beyond it sum to < 1."""
    u = np.linspace(-1, 1, side, dtype=np.float32)
    at = ((1 + scale)[:, None] * u + shift[:, None] + 1) * ((side - 1) / 2)
    return np.maximum(0, 1 - np.abs(at[..., None] - np.arange(side, dtype=np.float32)))


def _align(a: Floats, b: Floats, place: Floats, rounds: int) -> Floats:
    """Gauss-Newton for scale and shift of each axis, together with brightness and contrast.

    place: [pairs, 4] (scale x, shift x, scale y, shift y) in half sides; gives the improved one.
    """
    side = a.shape[1]
    u = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = u[None, None, :], u[None, :, None]
    ridge = np.diag(np.array([1, 1, 1, 1, 0, 0], np.float32))
    for _ in range(rounds):
        across, down = _weights(place[:, 0], place[:, 1], side), _weights(place[:, 2], place[:, 3], side)
        seen = down.sum(-1)[:, :, None] * across.sum(-1)[:, None, :] > 0.99  # [pairs, side, side]
        warped = down @ a @ across.transpose(0, 2, 1)
        slope_y, slope_x = np.gradient(warped, 2 / (side - 1), axis=(1, 2))
        columns = np.stack([slope_x * x, slope_x, slope_y * y, slope_y, warped, np.ones_like(warped)], -1)
        columns = (columns * seen[..., None]).reshape(len(a), -1, 6)
        wanted = (b * seen).reshape(len(a), -1, 1)
        square = columns.transpose(0, 2, 1) @ columns
        # a trace of damping, so that flat pictures have a solution: none
        square += (ridge * 1e-3 + np.eye(6, dtype=np.float32) * 1e-4) * square.trace(axis1=1, axis2=2)[:, None, None]
        solved = np.linalg.solve(square, columns.transpose(0, 2, 1) @ wanted)[..., 0]
        step = solved[:, :4] / np.clip(solved[:, 4:5], 0.3, 3)
        place = np.clip(place + np.clip(step, -0.08, 0.08), -_REACH, _REACH).astype(np.float32)
    return place


def _differences(a: Floats, b: Floats, place: Floats) -> tuple[Floats, Floats]:
    from scipy.ndimage import gaussian_filter

    across, down = _weights(place[:, 0], place[:, 1], GRID), _weights(place[:, 2], place[:, 3], GRID)
    seen = (down.sum(-1)[:, :, None] * across.sum(-1)[:, None, :] > 0.99).astype(np.float32)
    first, second = (gaussian_filter(g, (0, 0.7, 0.7, 0), mode="nearest") for g in (a, b))
    planes = down[:, None] @ first.transpose(0, 3, 1, 2) @ across.transpose(0, 2, 1)[:, None]  # [pairs, 3, GRID, GRID]
    warped = planes.transpose(0, 2, 3, 1)
    count = seen.sum((1, 2))[:, None, None]
    grey_a, grey_b = warped.mean(-1), second.mean(-1)
    flat_a, flat_b = ((g - (g * seen).sum((1, 2), keepdims=True) / count) * seen for g in (grey_a, grey_b))
    power_a, power_b, both = ((p * q).sum((1, 2)) for p, q in ((flat_a, flat_a), (flat_b, flat_b), (flat_a, flat_b)))
    likeness = both / np.sqrt(power_a * power_b + 1e-6)
    gain = np.clip(both / (power_a + 1e-6), 0.6, 1.7)[:, None, None, None]
    mean_a, mean_b = (
        (g * seen[..., None]).sum((1, 2, 3), keepdims=True) / (3 * count[..., None]) for g in (warped, second)
    )
    error = (((warped - mean_a) * gain - (second - mean_b)) ** 2).mean(-1) * seen
    side = GRID // _TILES

    def tiles(g: Floats) -> Floats:
        return g.reshape(len(g), _TILES, side, _TILES, side).sum((2, 4))

    enough = tiles(seen) >= side * side / 4
    local = np.sqrt(tiles(error) / np.maximum(tiles(seen), 1)) * enough
    contrast = np.sqrt(power_b / count[:, 0, 0])
    return likeness.astype(np.float32), (local.max((1, 2)) / (contrast + _SLACK)).astype(np.float32)
