"""The curves of a run, each with what it says in words: held-out loss, training loss and learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lora_scripts.report import chart
from lora_scripts.report.data import HeldOutCurve


@dataclass(frozen=True)
class Curve:
    """A part of the page about one curve."""

    title: str
    note: str
    figure: chart.Figure | None = None
    """None where there are too few points."""
    keys: Sequence[tuple[str, str]] = ()
    """Style of a line and what it shows."""
    words: Sequence[str] = ()
    """What the curve says."""
    low: bool = False
    """Drawn at half the height."""


class Told(Protocol):
    """What curves are drawn of."""

    @property
    def held_out(self) -> HeldOutCurve | None: ...

    @property
    def loss(self) -> Sequence[tuple[int, float]]: ...

    @property
    def learning_rate(self) -> Sequence[tuple[int, float]]: ...


def curves(data: Told) -> list[Curve]:
    """Those that there is something to say about, the most telling first."""
    drawn = [
        _held_out(data.held_out) if data.held_out else None,
        _loss(chart.finite(data.loss)),
        _rate(chart.finite(data.learning_rate)),
    ]
    return [curve for curve in drawn if curve is not None]


def _held_out(data: HeldOutCurve) -> Curve | None:
    """The held-out loss beside that of some training pictures, and its verdict."""
    title = "Held-out loss"
    held, train = chart.finite(data.held), chart.finite(data.train)
    if len(held) < 2:
        return Curve(title, "Too few measurements for a curve.", words=data.words) if data.words else None
    view = chart.frame([*held, *train])
    view = chart.Frame(held[0][0], max(held[-1][0], held[0][0] + 1), view.y0, view.y1)
    alike = ", always at the same noise and the same noise levels" if data.samples == "pictures" else ""
    note = (
        f"{data.samples.capitalize()} that were not trained{alike}, so that the differences are the model's alone. "
        f"Where it rises while that of the training {data.samples} falls, the LoRA memorises."
    )
    label = f"Held-out loss, from {chart.number(held[0][1])} to {chart.number(held[-1][1])}."
    figure = chart.figure(label, view, [chart.Line(train, "raw"), chart.Line(held, "smooth")])
    return Curve(
        title, note, figure, [("smooth", f"held-out {data.samples}"), ("raw", f"training {data.samples}")], data.words
    )


def _loss(loss: list[tuple[float, float]]) -> Curve | None:
    if len(loss) < 2:
        return None
    factor = chart.smoothing_factor(len(loss))
    smooth = chart.smoothed([y for _, y in loss], factor)
    bins = chart.binned(loss)
    band = bins if len(bins) < len(loss) else []
    view = chart.frame(loss, smooth)
    # The smoothed line is computed from every point, then thinned like the rest.
    thinned = [(b.x, b.mean) for b in chart.binned([(x, s) for (x, _), s in zip(loss, smooth, strict=True)])]
    lines = [chart.Line([(b.x, b.mean) for b in bins], "raw"), chart.Line(thinned, "smooth")]
    raw = f"mean of {-(-len(loss) // len(bins))} steps, and their range" if band else "each step"
    keys = [("smooth", f"smoothed (moving average, factor {factor:g})"), ("raw", raw)]
    tenth = max(1, len(loss) // 10)
    start, end = (sum(y for _, y in part) / tenth for part in (loss[:tenth], loss[-tenth:]))
    seen = f"{chart.number(start)} on average over the first tenth of the steps, {chart.number(end)} over the last."
    note = f"{seen} Single steps scatter, because each draws its own noise; the smoothed line is the one to read."
    if beyond := sum(y > view.y1 for _, y in loss):
        note += f" Steps that reach beyond the top edge: {beyond:,}."
    return Curve("Loss", note, chart.figure(f"Loss. {seen}", view, lines, band), keys)


def _rate(rate: list[tuple[float, float]]) -> Curve | None:
    if len(rate) < 2:
        return None
    highest = max(y for _, y in rate)
    note = f"At most {chart.number(highest)}, {chart.number(rate[-1][1])} at the end."
    line = chart.Line([(b.x, b.mean) for b in chart.binned(rate)], "smooth")
    figure = chart.figure(f"Learning rate. {note}", chart.frame(rate), [line])
    return Curve("Learning rate", note, figure, low=True)
