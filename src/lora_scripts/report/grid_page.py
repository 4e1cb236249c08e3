"""One self-contained HTML page of a grid: pictures in rows and columns, and what was measured of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL.Image import Image, Resampling

from .parts import asset, data_uri, document, facts, section

MOST_SIDE = 640
"""Pixels of a picture on the page; larger ones are reduced, and open in full from their file."""
LOSSLESS = 256
"""Up to this side a picture is kept bit for bit."""


@dataclass(frozen=True)
class ShownCell:
    """A picture at its place."""

    image: Image
    href: str
    """Its file, relative to the page."""
    title: str
    """Where it stands: "prompt a house, strength 0.8"."""
    parameters: str
    """How it was made, as in the PNG."""
    values: Sequence[tuple[str, str]] = ()
    """What was measured: words and numbers."""


@dataclass(frozen=True)
class Block:
    """Rows and columns of pictures."""

    label: str | None
    columns: Sequence[str]
    rows: Sequence[tuple[str | None, Sequence[ShownCell]]]


@dataclass(frozen=True)
class MeasureRow:
    """What was measured of one LoRA at one strength, the mean over its pictures; None where there was nothing to
    measure by."""

    name: str
    strength: float
    loras: Sequence[str]
    """AutoV3 of the files that are on; none: the base."""
    pictures: int
    pixels: float
    """Difference from the base, 0 … 1."""
    latents: float
    style: float | None
    prompt: float
    nearest: str | None
    similarity: float | None
    thumbnail: Image | None = None


@dataclass(frozen=True)
class GridData:
    """Everything on the page."""

    title: str
    axes: Sequence[str]
    """Names, the one across last, the one down before it."""
    blocks: Sequence[Block]
    rows: Sequence[MeasureRow]
    facts: Sequence[tuple[str, str]]
    with_data: bool
    """That training pictures were looked at."""
    sheet: str
    """The contact sheet's file, relative to the page."""


def write_grid_page(path: Path, data: GridData, write: Callable[[Path, str], None]) -> None:
    """Writes the page to `path` with `write`, the project's one way of writing a text file."""
    write(path, render(data))


def render(data: GridData) -> str:
    """The whole page as HTML."""
    parts = [_hero(data), *(_block(data, number) for number in range(len(data.blocks))), _measures(data)]
    after = (
        '<dialog aria-label="Enlarged picture" tabindex="-1" autofocus><div class="sheet"><img alt="">'
        '<div class="about"><h2></h2><dl></dl>'
        "<pre></pre><p><a>Open the file in full size</a> · arrow keys go on, Esc closes</p></div></div></dialog>\n"
    )
    return document(
        f"{data.title} · grid", parts, [asset("page.css"), asset("grid.css")], asset("grid.js"), after=after
    )


def _hero(data: GridData) -> str:
    across = " × ".join(data.axes)
    head = (
        f"<h1>{escape(data.title).replace('_', '_<wbr>')}</h1>"
        f'<p class="axes">{escape(across)}. Press a picture to enlarge it and to read how it was made; '
        f'all of them in one picture: <a href="{escape(data.sheet)}">{escape(data.sheet)}</a></p>'
    )
    return f'<header class="alone"><div class="title">{head}</div>{facts(data.facts)}</header>'


def _block(data: GridData, number: int) -> str:
    block = data.blocks[number]
    heading = f"<h2><span>{escape(data.axes[0])}</span> {escape(block.label)}</h2>" if block.label is not None else ""
    down = data.axes[-2] if len(data.axes) > 1 else ""
    corner = "<td></td>" if down else ""
    first = '<span class="axis">{}</span>'
    columns = "".join(
        f'<th scope="col">{first.format(escape(data.axes[-1]))}{escape(label)}</th>' for label in block.columns
    )
    rows = []
    for label, cells in block.rows:
        head = "" if label is None else f'<th scope="row">{first.format(escape(down))}{escape(label)}</th>'
        rows.append(f"<tr>{head}{''.join(map(_cell, cells))}</tr>")
    name = escape(block.label or "Pictures")
    return (
        f'<section class="wide">{heading}<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f'<table class="cells" style="--columns: {len(block.columns)}"><thead><tr>{corner}{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _cell(cell: ShownCell) -> str:
    values = "\n".join(f"{name}\t{value}" for name, value in cell.values)
    return (
        f'<td><button type="button" class="zoom" data-file="{escape(cell.href)}" data-title="{escape(cell.title)}"'
        f' data-text="{escape(cell.parameters)}" data-values="{escape(values)}">'
        f'<img src="{_embedded(cell.image)}" width="{cell.image.width}" height="{cell.image.height}"'
        f' alt="{escape(cell.title)}"></button></td>'
    )


def _embedded(image: Image) -> str:
    if max(image.size) <= LOSSLESS:
        return data_uri(image)
    factor = min(1.0, MOST_SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    small = image if factor == 1 else image.resize(size, Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=90, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _measures(data: GridData) -> str:
    if not data.rows:
        return ""
    heads = ["LoRA", "strength", "pictures", "difference from the base"]
    heads += ["likeness to the training style"] if data.with_data else []
    heads += ["prompt found"]
    heads += ["nearest training picture"] if data.with_data else []
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    most = [max(max(values), 1e-9) for values in zip(*((row.pixels, row.prompt) for row in data.rows), strict=True)]
    body = "".join(f"<tr>{_measure_cells(row, most, with_data=data.with_data)}</tr>" for row in data.rows)
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Measures">'
        f'<table class="measures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    note = "Means over the prompts, seeds and cfgs of the grid. They help to look; they do not judge beauty."
    return section("Measures", note, table + _explained(with_data=data.with_data))


def _measure_cells(row: MeasureRow, most: Sequence[float], *, with_data: bool) -> str:
    """`most`: the largest difference and the largest share of the prompt of all rows, for the bars."""
    base = not row.loras
    cells = [
        f'<th scope="row">{escape(row.name)}</th>',
        f"<td>{'–' if base else f'{row.strength:g}'}</td><td>{row.pictures}</td>",
        f"<td>{'–' if base else _bar(row.pixels, row.pixels / most[0], f'{row.pixels:.1%}')}</td>",
    ]
    if with_data:
        style = "0%" if base else "not told" if row.style is None else _bar(row.style, row.style, f"{row.style:.0%}")
        cells.append(f"<td>{style}</td>")
    cells.append(f"<td>{_bar(row.prompt, row.prompt / most[1], f'{row.prompt:.1%}')}</td>")
    if with_data and row.nearest is not None and row.similarity is not None:
        image = "" if row.thumbnail is None else f'<img src="{_embedded(row.thumbnail)}" alt="">'
        cells.append(
            f'<td><div class="near">{image}<span>{escape(row.nearest)}<br>{row.similarity:.2f}</span></div></td>'
        )
    elif with_data:
        cells.append("<td></td>")
    return "".join(cells)


def _bar(value: float, share: float, text: str) -> str:
    width = max(0.0, min(1.0, share))
    return f'<span class="bar{" less" if value < 0 else ""}" style="--share: {width:.3f}">{escape(text)}</span>'


def _explained(*, with_data: bool) -> str:
    rows = [
        (
            "difference from the base",
            "How far the pixels moved from the picture that the base draws of the same prompt and seed, of all that "
            "they could: 0 % is the same picture, 100 % black in place of white.",
        )
    ]
    if with_data:
        rows.append(
            (
                "likeness to the training style",
                "Mean and spread of each channel of the base's own image encoder: colours, contrast, the kind of edges "
                "and textures, not what is shown where. 0 % is as far from the training pictures as the picture of the "
                "base, 100 % as near as the training pictures are among themselves; below 0 % is farther away.",
            )
        )
    rows.append(
        (
            "prompt found",
            "Noise is put on the picture, and the model that drew it takes it off, once knowing the prompt and once "
            "not: by so much its error is smaller when it knows. About 0 % or less is a picture that does not show the "
            "prompt, or a LoRA that no longer listens to it. The row of the base says what is much.",
        )
    )
    if with_data:
        rows.append(
            (
                "nearest training picture",
                "The training picture whose layout comes nearest, and how near: 1.00 is the same picture. A value near "
                "1 for a prompt that asks for something else tells that pictures were learnt by heart.",
            )
        )
    body = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in rows)
    return f'<dl class="explained">{body}</dl>'
