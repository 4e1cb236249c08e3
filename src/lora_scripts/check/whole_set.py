"""What the pictures of a set have in common that they should perhaps not: a cast of colour, a mark at one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_scripts.check.facts import PictureFacts
from lora_scripts.check.overlays import Box
from lora_scripts.data.findings import Finding
from lora_scripts.units import percent

_ENOUGH = 6
"""Pictures from which on something can be called common."""
_CAST = 12.0
"""Length of the mean (a*, b*) in CIELAB; a clear tint begins at about 10."""


def findings(facts: Sequence[PictureFacts]) -> Iterator[Finding]:
    """Of the readable pictures of a set; none for very small sets."""
    seen = [fact for fact in facts if fact.readable and fact.problem is None]
    if len(seen) >= _ENOUGH:
        yield from _cast(seen)
        yield from _mark(seen)


def _cast(facts: Sequence[PictureFacts]) -> Iterator[Finding]:
    tints = np.array([_lab(fact.colours())[..., 1:].mean((0, 1)) for fact in facts])  # [pictures, 2]
    middle = np.median(tints, axis=0)
    length = float(np.hypot(*middle))
    if length < _CAST:
        return
    share = float(((tints @ middle) / length > 0.4 * _CAST).mean())
    if share >= 0.85:
        angle = float(np.degrees(np.arctan2(middle[1], middle[0])))
        message = (
            f"{percent(share)} of the pictures lean towards {_hue(angle)} "
            f"(a* {middle[0]:+.0f}, b* {middle[1]:+.0f}): the LoRA will learn that"
        )
        yield Finding("colour_cast", "note", (), message, "correct the white balance, unless it is the style")


def _hue(angle: float) -> str:
    """Names by CIELAB hue angle: red 40, yellow 100, green 136, cyan 196, blue 290, magenta 328 for sRGB's own."""
    centres = {"red": 35, "orange": 65, "yellow": 98, "green": 140, "cyan": 196, "blue": 275, "violet": 308}
    centres |= {"magenta": 332, "pink": 0}
    return min(centres, key=lambda hue: abs((angle - centres[hue] + 180) % 360 - 180))


def _lab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB bytes -> CIELAB under D65 (IEC 61966-2-1; CIE 15)."""
    values = rgb / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _mark(facts: Sequence[PictureFacts]) -> Iterator[Finding]:
    """A line of text that stands at the same place in several pictures is hardly part of them."""
    lines = [(fact.name, text.box) for fact in facts for text in fact.texts]
    best: list[str] = []
    for _, box in lines:
        names = sorted({name for name, other in lines if _overlap(box, other) > 0.6})
        best = max(best, names, key=len)
    if len(best) >= max(3, len(facts) // 10):
        message = f"what looks like one text stands at the same place in {len(best)} pictures: a watermark?"
        yield Finding("watermark", "warning", tuple(best), message, "crop or paint it out, or it will be learned", 0.8)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both) if areas > both else 0.0
