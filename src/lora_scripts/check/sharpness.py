"""How fine the details of a picture are: at the size of training (out of focus?) and at its own (enlarged?).

Both are told from the strongest edges of the busiest parts, so that a smooth sky, a flat ground or a background out of
focus count for nothing. An edge that is blurred by s keeps its slope when it is blurred once more by less than s, and
a sharp one loses it: the ratio of its gradients under two Gaussians tells s (Zhuo and Sim, "Defocus map estimation from
a single image", 2011). Enlarging leaves, in addition, a spectrum that ends at the old limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_scripts.check.weights import DETAIL, FOCUS, NAME, Weights

Floats = NDArray[np.float32]

WORK = 512
"""Focus is judged at this size: the square root of width x height."""
SMALLEST = 0.7
"""Pictures smaller than this part of WORK are not judged; that they are too small says it all."""
_TILE, _TILES = 64, 24
_EDGES = 40
"""Fewer edges than this do not carry a verdict."""
_BANDS = ((0.06, 0.10), (0.12, 0.18), (0.20, 0.26), (0.28, 0.36), (0.40, 0.48))
"""Cycles a pixel."""


@dataclass(frozen=True)
class Sharpness:
    """Above 0 is a finding; each None where there are too few edges to tell."""

    blurred: float | None = None
    """Out of focus at WORK, with a deviation of 2 px or more, and not by being enlarged: in log odds."""
    enlarged: float | None = None
    """Without detail that half of its width could not hold, for whatever reason: in log odds."""


def measure(grey: Image.Image) -> Sharpness:
    """Of a picture in mode L, without its borders."""
    scale = math.sqrt(grey.width * grey.height) / WORK
    if scale < SMALLEST:
        return Sharpness()
    native = tiles(np.asarray(grey))
    if scale > 1:
        small = grey.resize((round(grey.width / scale), round(grey.height / scale)), Image.Resampling.LANCZOS)
        work = tiles(np.asarray(small))
    else:
        work = native
    focus, detail = focus_features(work, min(scale, 1.0)), detail_features(native)
    if focus is None or detail is None:
        return Sharpness()
    soft = _odds(focus, FOCUS)
    # a picture enlarged far is as soft as one out of focus; its spectrum tells which
    named = _odds(np.concatenate([focus, detail]), NAME)
    return Sharpness(min(soft, named), max(soft, _odds(detail, DETAIL)))


def tiles(grey: NDArray[np.uint8]) -> Floats:
    """The busiest tiles of a picture, overlapping by half: [tiles, 64, 64]; fewer for small pictures."""
    half = _TILE // 2
    rows, columns = grey.shape[0] // half, grey.shape[1] // half
    if min(rows, columns) < 2:
        return np.zeros((0, _TILE, _TILE), np.float32)
    part = grey[: rows * half, : columns * half]
    corner, below, beside = (p.astype(np.int16) for p in (part[::2, ::2], part[1::2, ::2], part[::2, 1::2]))
    busy = np.abs(corner - below) + np.abs(corner - beside)
    cells = busy.reshape(rows, half // 2, columns, half // 2).sum((1, 3))
    sums = cells[:-1, :-1] + cells[1:, :-1] + cells[:-1, 1:] + cells[1:, 1:]
    best = np.argsort(sums, axis=None)[::-1][:_TILES]
    places = zip(*np.unravel_index(best, sums.shape), strict=True)
    tiles = [part[y * half : y * half + _TILE, x * half : x * half + _TILE] for y, x in places]
    return np.stack(tiles).astype(np.float32)


def focus_features(work: Floats, scale: float) -> Floats | None:
    """Quantiles of the gradients' ratio under deviations 1 and 2 px at WORK, in logarithms.

    `scale` is 1, or less for tiles of a picture that is smaller than WORK by this factor.
    """
    ratios = _edge_ratios(work, (scale, 2 * scale))
    return None if ratios is None else np.log(np.quantile(ratios[0], (0.5, 0.75, 0.9)).clip(0.85)).astype(np.float32)


def detail_features(native: Floats) -> Floats | None:
    """As `focus_features` with finer Gaussians, and by how much the spectrum falls from band to band."""
    ratios = _edge_ratios(native, (0.5, 1.0, 2.0))
    if ratios is None:
        return None
    fine, coarse = ratios
    edges = [*np.quantile(fine, (0.5, 0.75)), np.quantile(coarse, 0.5)]
    power = _spectrum(native)
    return np.array([*np.log(np.maximum(edges, 0.85)), *(power[:-1] - power[1:]), power[-1]], np.float32)


def _edge_ratios(stack: Floats, sigmas: tuple[float, ...]) -> list[Floats] | None:
    """At the strongest fifth of the ridges of gradient: its ratio from each deviation to the next."""
    from scipy.ndimage import maximum_filter

    if not len(stack):
        return None
    slopes = [_slope(stack, sigma) for sigma in sigmas]
    ratios = []
    for sharp, smooth in pairwise(slopes):
        ridge = (sharp >= maximum_filter(sharp, (1, 3, 3))) & (sharp > 1.0)
        ridge[:, :4] = ridge[:, -4:] = ridge[:, :, :4] = ridge[:, :, -4:] = False
        heights = sharp[ridge]
        if heights.size < _EDGES:
            return None
        strong = ridge & (sharp >= np.quantile(heights, 0.8))
        ratios.append(sharp[strong] / np.maximum(smooth[strong], 1e-3))
    return ratios


def _slope(stack: Floats, sigma: float) -> Floats:
    from scipy.ndimage import gaussian_filter

    across = gaussian_filter(stack, (0, sigma, sigma), order=(0, 0, 1), truncate=3)
    down = gaussian_filter(stack, (0, sigma, sigma), order=(0, 1, 0), truncate=3)
    return np.hypot(across, down)


def _spectrum(stack: Floats) -> Floats:
    """log10 of the power in each of `_BANDS`, of the tiles under a Hann window."""
    from scipy import fft

    window = np.outer(np.hanning(_TILE + 2)[1:-1], np.hanning(_TILE + 2)[1:-1]).astype(np.float32)
    flat = (stack - stack.mean((1, 2), keepdims=True)) * window
    power = (np.abs(fft.rfft2(flat)) ** 2).mean(0) / (window**2).sum()
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None])
    means = [power[(frequency >= low) & (frequency < high)].mean() for low, high in _BANDS]
    return np.log10(np.array(means) + 1e-3).astype(np.float32)


def _odds(features: Floats, weights: Weights) -> float:
    return float(weights.bias + np.dot(features, weights.factors))
