"""What the measurements say: the held-out curve, advice, and the drawn pictures that come nearest to trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import chart
from .data import HeldOutCurve, Nearest
from .parts import picture, section


def held_out(data: HeldOutCurve | None) -> str:
    """The curve of the held-out loss beside that of some training pictures, and its verdict."""
    if data is None:
        return ""
    held, train = chart.finite(data.held), chart.finite(data.train)
    told = "".join(f"<p>{escape(line[:1].upper() + line[1:])}.</p>" for line in data.words)
    if len(held) < 2:
        return section("Held-out loss", "Too few measurements for a curve.", told) if told else ""
    view = chart.frame([*held, *train])
    view = chart.Frame(held[0][0], max(held[-1][0], held[0][0] + 1), view.y0, view.y1)
    lines = [chart.Line(train, "raw"), chart.Line(held, "smooth")]
    keys = '<span class="key-smooth">held-out pictures</span><span class="key-raw">training pictures</span>'
    legend = f'<p class="legend">{keys}</p>'
    note = (
        "Pictures that were not trained, always at the same noise and the same noise levels, so that the differences "
        "are the model's alone. Where it rises while that of the training pictures falls, the LoRA memorises."
    )
    label = f"Held-out loss, from {chart.number(held[0][1])} to {chart.number(held[-1][1])}."
    return section("Held-out loss", note, told + legend + chart.figure(label, view, lines))


def advised(lines: Sequence[str]) -> str:
    """What to change, if anything."""
    if not lines:
        return ""
    body = "".join(f"<p>{escape(line[:1].upper() + line[1:])}</p>" for line in lines)
    return section("Advice", "What the losses show, the step, and a line of the config to try next.", body)


def nearest(data: Nearest | None) -> str:
    """The closest pairs side by side."""
    if data is None:
        return ""
    rows = []
    for pair in data.pairs:
        cells = picture(pair.drawn, "drawn with the LoRA", f"Drawn: {pair.note}")
        cells += picture(pair.train, f"trained: {pair.name}", f"The nearest training picture: {pair.name}")
        rows.append(f'<div class="pair">{cells}<p class="prompt">{escape(pair.note)}</p></div>')
    body = (
        f"<p>{escape(data.verdict[:1].upper() + data.verdict[1:])}.</p>" + f'<div class="pairs">{"".join(rows)}</div>'
    )
    note = "Pictures drawn with the LoRA, beside the training pictures that they come nearest to."
    return section("Copies?", note, body)
