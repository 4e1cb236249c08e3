"""Text and marks laid over a picture: small shapes of one colour and one height, side by side on a line.

A guess from shapes, not a reading: fences, windows and grass can look alike; large, turned or faint text is missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

_STROKE = 20
"""Grey values by which a stroke stands out from its surroundings."""
_WINDOW = 17
"""Pixels over which the surroundings are averaged; strokes are thinner than half of it."""
_TALL = (5, 40)
"""Height of a letter, in pixels of the small copy."""
_CROWD = 500
"""More shapes than this are a texture; only the most contrasting are looked at."""
_LETTERS = 6
"""Shapes on one line that make a text."""
_CROWDED = 0.25
"""Share of the surroundings of a line, a letter wide, that stands out as its letters do: more, and it is a part of a
texture, or a gap between the lines of a drawing. Writing is set on what is not like it."""
_EDGE = 0.6
"""Share of the contrast of a line's letters by which what is above it differs from what is below: more, one of the two
being like the letters, and they are the ragged edge of a thing, as tree tops are."""
_MOST = 4


@dataclass(frozen=True)
class Overlay:
    """A line of what looks like text."""

    box: Box
    """(left, top, right, bottom) as shares of width and height."""
    sure: float


def find(grey: NDArray[np.uint8]) -> tuple[Overlay, ...]:
    """The likeliest lines in a grey picture of about 512 x 512 px, best first."""
    from scipy import ndimage

    values = grey.astype(np.float32)
    stands_out = values - ndimage.uniform_filter(values, _WINDOW, mode="nearest")
    lines = [line for side in (stands_out, -stands_out) for line in _lines(side, values)]
    return tuple(sorted(lines, key=lambda line: -line.sure)[:_MOST])


def _lines(stands_out: NDArray[np.float32], grey: NDArray[np.float32]) -> list[Overlay]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    letters = _letters(stands_out, grey)
    if len(letters) < _LETTERS:
        return []
    left, top, right, bottom, shade = letters.T
    tall = bottom - top
    # j follows i on its line: as tall, on the same foot, not far, and of the same shade
    taller, lower = np.maximum(tall[:, None], tall[None]), np.minimum(tall[:, None], tall[None])
    gap = left[None] - right[:, None]
    foot = np.minimum(np.abs(bottom[:, None] - bottom[None]), np.abs(top[:, None] - top[None]))
    follows = (taller <= 1.7 * lower) & (foot <= 0.15 * taller + 1) & (gap > -0.3 * taller) & (gap < 0.9 * taller)
    follows &= (left[None] > left[:, None]) & (np.abs(shade[:, None] - shade[None]) < 22)
    _, of = connected_components(csr_array(follows), directed=False)
    groups = np.flatnonzero(np.bincount(of) >= _LETTERS)
    judged = (_judge(letters[of == group], stands_out > _STROKE, grey) for group in groups)
    return [line for line in judged if line is not None]


def _letters(stands_out: NDArray[np.float32], grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shapes as large as letters: [letters, (left, top, right, bottom, shade)]."""
    from scipy import ndimage

    labels, count = ndimage.label(stands_out > _STROKE)
    y, x = np.nonzero(labels)
    of = labels[y, x]
    area = np.bincount(of, minlength=count + 1)[1:]
    order = np.argsort(of, kind="stable")
    y, x = y[order], x[order]
    starts = np.cumsum(area) - area
    if not count:
        return np.zeros((0, 5), np.float32)
    left, top = np.minimum.reduceat(x, starts), np.minimum.reduceat(y, starts)
    right, bottom = np.maximum.reduceat(x, starts) + 1, np.maximum.reduceat(y, starts) + 1
    wide, tall = right - left, bottom - top
    good = (tall >= _TALL[0]) & (tall <= _TALL[1]) & (wide <= 2.2 * tall) & (area > 0.2 * wide * tall) & (area >= 6)
    contrast, shade = (np.add.reduceat(values[y, x], starts) / area for values in (stands_out, grey))
    which = np.flatnonzero(good)
    which = which[np.argsort(-contrast[which])[:_CROWD]]
    return np.column_stack([each[which] for each in (left, top, right, bottom, shade)]).astype(np.float32)


def _judge(letters: NDArray[np.float32], strokes: NDArray[np.bool_], grey: NDArray[np.float32]) -> Overlay | None:
    """A group of shapes as one line of text; None if it is more of a patch, a row of equal things, or a piece of what
    is around it. `strokes`: the pixels that stand out."""
    left, top, right, bottom, shade = letters.T
    box = left.min(), top.min(), right.max(), bottom.max()
    tall, long = box[3] - box[1], box[2] - box[0]
    middle = float(np.median(bottom - top))
    wide = right - left
    if tall > 2.2 * middle or long < 3.5 * middle:
        return None
    foot = float(np.median(np.abs(bottom - np.median(bottom)))) / middle
    alike = float(np.clip(1.5 - shade.std() / 12, 0.2, 1))
    covered = float(np.minimum(wide.sum() / long, 1))
    varied = float(wide.std() / wide.mean())  # letters differ in width, windows do not
    sure = 0.8 * alike * np.clip(1.3 - 4 * foot, 0.3, 1) * np.clip(covered / 0.6, 0.3, 1)
    sure *= np.clip(len(letters) / 10, 0.6, 1) * (1 if varied > 0.15 else 0.5)
    if sure < 0.4 or _belongs((int(box[0]), int(box[1]), int(box[2]), int(box[3])), letters, strokes, grey):
        return None
    height, width = strokes.shape
    return Overlay((box[0] / width, box[1] / height, box[2] / width, box[3] / height), round(float(sure), 2))


def _belongs(
    box: tuple[int, int, int, int],
    letters: NDArray[np.float32],
    strokes: NDArray[np.bool_],
    grey: NDArray[np.float32],
) -> bool:
    """Whether a line is a part of what is up to a letter's height away: a texture, or the edge of a thing."""
    left, top, right, bottom = box
    reach = max(3, round(float(np.median(letters[:, 3] - letters[:, 1]))))

    def grown(by: int) -> NDArray[np.bool_]:
        return strokes[max(0, top - by) : bottom + by, max(0, left - by) : right + by]

    outer, inner = grown(reach), grown(1)
    if outer.sum() - inner.sum() > _CROWDED * (outer.size - inner.size):
        return True
    between = grey[top:bottom, left:right][~strokes[top:bottom, left:right]]
    sides = [grey[max(0, top - reach) : max(0, top - 1), left:right], grey[bottom + 1 : bottom + reach, left:right]]
    if not between.size or not all(side.size for side in sides):
        return False
    ground, shade = float(np.median(between)), float(np.median(letters[:, 4]))
    above, below = ((float(np.median(side)) - ground) / (shade - ground or 1.0) for side in sides)
    return max(above, below) > _EDGE and abs(above - below) > _EDGE
