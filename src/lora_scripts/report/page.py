"""One self-contained HTML page about a finished run: pictures, styles and script are inside, nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from . import chart, heldout
from .data import Comparison, LoraFile, ReportData, StrengthRow
from .parts import asset, copyable, document, facts, grouped, picture, section, tag
from .usage import usage

MOST_THUMBNAILS = 12


def write_report(path: Path, data: ReportData, write: Callable[[Path, str], None]) -> None:
    """Writes the page to `path` with `write`, the project's one way of writing a text file."""
    write(path, render(data))


def render(data: ReportData) -> str:
    """The whole page as HTML."""
    parts = [
        _hero(data),
        _comparisons(data.comparisons[1:]),
        _strengths(data.strengths),
        usage(data.lora, data.comparisons[0].prompt if data.comparisons else ""),
        _previews(data),
        heldout.advised(data.advice),
        heldout.held_out(data.held_out),
        _curves(data),
        heldout.nearest(data.nearest),
        _trained_on(data),
        _run(data),
    ]
    enlarged = '<dialog aria-label="Enlarged picture"><img alt=""><p></p></dialog>\n'
    script = asset("copy.js") + asset("page.js")
    return document(f"{data.name} · LoRA report", parts, [asset("page.css")], script, after=enlarged)


def _hero(data: ReportData) -> str:
    head = (
        f"<h1>{escape(data.name).replace('_', '_<wbr>')}</h1>"
        f'<p class="verified"><span aria-hidden="true">✓</span> {escape(data.verification)}</p>'
        f"<p>Copy <b>{escape(data.lora.name)}</b> into your WebUI and write</p>{copyable(tag(data.lora.stem))}"
    )
    lead = _pair(data.comparisons[0]) if data.comparisons else ""
    return f'<header{"" if lead else " class=alone"}><div class="title">{head}</div>{lead}{facts(data.facts)}</header>'


def _pair(shown: Comparison) -> str:
    note = f"{shown.prompt} · seed {shown.seed}"
    before = picture(shown.before, "Base model", f"Base model: {note}")
    after = picture(shown.after, "With the LoRA", f"With the LoRA: {note}")
    return f'<div class="pair">{before}{after}<p class="prompt">{_prompt(shown.prompt, shown.seed)}</p></div>'


def _prompt(prompt: str, seed: int | None = None) -> str:
    return escape(prompt) + ("" if seed is None else f' <span class="soft">seed {seed}</span>')


def _comparisons(shown: Sequence[Comparison]) -> str:
    if not shown:
        return ""
    note = "The same prompt and the same seed, without the LoRA and with it."
    return section("Before and after", note, f'<div class="pairs">{"".join(map(_pair, shown))}</div>')


def _strengths(rows: Sequence[StrengthRow]) -> str:
    if not rows:
        return ""
    body = []
    for row in rows:
        cells = "".join(
            picture(
                image,
                "0, the base model" if strength == 0 else f"{strength:g}",
                f"Strength {strength:g}: {row.prompt} · seed {row.seed}",
            )
            for strength, image in row.cells
        )
        body.append(f'<p class="prompt">{_prompt(row.prompt, row.seed)}</p><div class="strip">{cells}</div>')
    note = "The number after the second colon of the tag. 0 is the base model, 1 is the LoRA in full."
    return section("How strong", note, "".join(body))


def _previews(data: ReportData) -> str:
    rows = grouped((prompt, (step, image)) for step, shown in data.previews for prompt, image in shown)
    if not rows:
        return ""
    body = []
    for prompt, cells in rows.items():
        strip = "".join(
            picture(image, f"step {step:,}", f"Step {step}: {prompt}")
            for step, image in sorted(cells, key=lambda c: c[0])
        )
        body.append(f'<p class="prompt">{_prompt(prompt)}</p><div class="strip">{strip}</div>')
    return section("While it learned", "One prompt a row, from the first preview to the last.", "".join(body))


def _curves(data: ReportData) -> str:
    loss, rate = chart.finite(data.loss), chart.finite(data.learning_rate)
    return (_loss(loss) if len(loss) > 1 else "") + (_rate(rate) if len(rate) > 1 else "")


def _loss(loss: chart.Points) -> str:
    factor = chart.smoothing_factor(len(loss))
    smooth = chart.smoothed([y for _, y in loss], factor)
    bins = chart.binned(loss)
    band = bins if len(bins) < len(loss) else []
    view = chart.frame(loss, smooth)
    # The smoothed line is computed from every point, then thinned like the rest.
    curve = [(b.x, b.mean) for b in chart.binned([(x, s) for (x, _), s in zip(loss, smooth, strict=True)])]
    lines = [chart.Line([(b.x, b.mean) for b in bins], "raw"), chart.Line(curve, "smooth")]
    beyond = sum(y > view.y1 for _, y in loss)
    raw = f"mean of {-(-len(loss) // len(bins))} steps, and their range" if band else "each step"
    legend = (
        f'<p class="legend"><span class="key-smooth">smoothed (moving average, factor {factor:g})</span>'
        f'<span class="key-raw">{raw}</span></p>'
    )
    tenth = max(1, len(loss) // 10)
    start, end = (sum(y for _, y in part) / tenth for part in (loss[:tenth], loss[-tenth:]))
    seen = f"{chart.number(start)} on average over the first tenth of the steps, {chart.number(end)} over the last."
    note = f"{seen} Single steps scatter, because each draws its own noise; the smoothed line is the one to read."
    if beyond:
        note += f" Steps that reach beyond the top edge: {beyond:,}."
    return section("Loss", note, legend + chart.figure(f"Loss. {seen}", view, lines, band))


def _rate(rate: chart.Points) -> str:
    bins = chart.binned(rate)
    highest = max(y for _, y in rate)
    note = f"At most {chart.number(highest)}, {chart.number(rate[-1][1])} at the end."
    line = chart.Line([(b.x, b.mean) for b in bins], "smooth")
    body = chart.figure(f"Learning rate. {note}", chart.frame(rate), [line])
    return section("Learning rate", note, f'<div class="low">{body}</div>')


def _trained_on(data: ReportData) -> str:
    shown = data.thumbnails[:MOST_THUMBNAILS]
    if not shown:
        return ""
    body = "".join(picture(image, caption, caption) for image, caption in shown)
    return section("Trained on", "Some of the pictures, with their captions.", f'<div class="thumbs">{body}</div>')


def _run(data: ReportData) -> str:
    body = facts(_file_facts(data.lora))
    if data.config_text:
        body += f"<details><summary>Configuration</summary>{copyable(data.config_text, block=True)}</details>"
    if data.versions:
        body += f"<details><summary>Versions</summary>{facts(list(data.versions.items()))}</details>"
    return section("The file and the run", "What to quote when you share it, or ask about it.", body)


def _file_facts(lora: LoraFile) -> list[tuple[str, str]]:
    size = f"{lora.size / 1e6:,.1f} MB" if lora.size >= 1e5 else f"{lora.size / 1e3:,.1f} kB"
    return [("File", lora.name), ("Size", size), ("AutoV2", lora.auto_v2), ("SHA-256", lora.sha256)]
