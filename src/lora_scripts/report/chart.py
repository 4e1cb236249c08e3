"""Line charts: ticks, bins, smoothing, and where in a drawing all of it stands; pure functions of the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 1000, 360
"""Units of the drawing; the page stretches it, so lines keep their width and labels are HTML beside it."""
MOST_POINTS = 600
ROBUST_SHARE = 0.98
"""Share of the values that the height is chosen for; single spikes beyond would press the rest flat."""


@dataclass(frozen=True)
class Bin:
    """Neighbouring points as one."""

    x: float
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Line:
    """One drawn line."""

    points: Points
    style: str
    """Class of the style sheet."""


@dataclass(frozen=True)
class Frame:
    """The data range that the drawing shows."""

    x0: float
    x1: float
    y0: float
    y1: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Data to drawing, y down; values beyond the top edge stop there."""
        across = (x - self.x0) / (self.x1 - self.x0) * WIDTH
        up = min(1.0, max(0.0, (y - self.y0) / (self.y1 - self.y0)))
        return across, (1 - up) * HEIGHT


@dataclass(frozen=True)
class Drawn:
    """A line as SVG draws it."""

    style: str
    path: str
    """Points in units of the drawing."""


@dataclass(frozen=True)
class Mark:
    """A label beside the drawing."""

    text: str
    place: str
    """Share of the axis, "12.50%", from the left or from the top."""
    last: bool = False
    """So near the right end that it must end there."""


@dataclass(frozen=True)
class Figure:
    """A chart as the page draws it."""

    label: str
    lines: Sequence[Drawn]
    band: str
    """Outline of the range of the values; empty for none."""
    grid: Sequence[str]
    """Heights of the level lines."""
    up: Sequence[Mark]
    across: Sequence[Mark]
    width: int = WIDTH
    height: int = HEIGHT


def binned(points: Points, most: int = MOST_POINTS) -> list[Bin]:
    """At most `most` bins of equally many points; every point keeps its own where there are few enough."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        Bin(sum(x for x, _ in g) / len(g), min(y for _, y in g), sum(y for _, y in g) / len(g), max(y for _, y in g))
        for g in groups
    ]


def smoothing_factor(count: int) -> float:
    """Factor for a curve of `count` points: a memory of a tenth of it, between 5 and 500 points."""
    span = min(500.0, max(5.0, count / 10))
    return round(1 - 2 / (span + 1), 3)


def smoothed(values: Iterable[float], factor: float) -> list[float]:
    """Exponential moving average with its start corrected, so that the first value is the first value.

    Kingma and Ba, "Adam", section 3: m_t = f m_(t-1) + (1 - f) v_t, divided by 1 - f^t.
    """
    result, average, weight = [], 0.0, 0.0
    for value in values:
        average = factor * average + (1 - factor) * value
        weight = factor * weight + (1 - factor)
        result.append(average / weight)
    return result


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def frame(points: Points, smooth: Sequence[float] = ()) -> Frame:
    """A range that holds nearly every value and the whole smoothed line; zero is the ground unless it is far away."""
    values = sorted(y for _, y in points)
    top = max([values[math.ceil(ROBUST_SHARE * len(values)) - 1], *smooth])
    low = values[0]
    if 0 <= low < top * 0.4:
        low = 0.0
    room = (top - low) * 0.06 or abs(top) * 0.1 or 1.0
    x0, x1 = points[0][0], points[-1][0]
    return Frame(x0, x1 if x1 > x0 else x0 + 1, low - (room if low else 0), top + room)


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(y)]


def figure(label: str, view: Frame, lines: Sequence[Line], band: Sequence[Bin] = ()) -> Figure:
    """One chart, ready to be drawn; `label` says in words what there is to see."""
    outline = [view.place(b.x, b.high) for b in band] + [view.place(b.x, b.low) for b in reversed(band)]
    shares = [(x, view.place(x, 0)[0] / WIDTH) for x in _whole_ticks(view)]
    heights = [(y, view.place(view.x0, y)[1]) for y in ticks(view.y0, view.y1, 4)]
    return Figure(
        label=label,
        lines=[Drawn(line.style, _path([view.place(x, y) for x, y in line.points])) for line in lines],
        band=_path(outline),
        grid=[f"{height:.1f}" for _, height in heights],
        up=[
            Mark(text, f"{height / HEIGHT:.2%}")
            for text, (_, height) in zip(labels([y for y, _ in heights]), heights, strict=True)
        ],
        across=[Mark(f"{x:,.0f}", f"{share:.2%}", last=share > 0.95) for x, share in shares],
    )


def number(value: float, digits: int = 3) -> str:
    """Short: 0.25, 2e-4, 1,500."""
    if value and abs(value) < 0.001:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.{digits - 3}f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def labels(values: Sequence[float]) -> list[str]:
    """Of marks along an axis: with as many digits as the finest needs, else two levels would have one name."""
    for digits in range(3, 9):
        texts = [number(value, digits) for value in values]
        if [float(text.replace(",", "")) for text in texts] == list(values):
            break
    return texts


def _whole_ticks(view: Frame) -> list[float]:
    marks = [x for x in ticks(view.x0, view.x1, 6) if x == int(x)]
    return marks or [view.x0]


def _path(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
