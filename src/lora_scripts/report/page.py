"""One self-contained HTML page about a finished run: pictures, styles and script are inside, nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL.Image import Image

from lora_scripts.report.curves import curves
from lora_scripts.report.data import THUMBNAILS, LoraFile, ReportData
from lora_scripts.report.environment import fill
from lora_scripts.report.usage import diffusers_code, tag


def write_report(path: Path, data: ReportData, write: Callable[[Path, str], None]) -> None:
    """Writes the page to `path` with `write`, the project's one way of writing a text file."""
    write(path, render(data))


def render(data: ReportData) -> str:
    """The whole page as HTML."""
    prompt = data.comparisons[0].prompt if data.comparisons else ""
    return fill(
        "report.html",
        report=data,
        language=data.language,
        tag=tag(data.lora.stem, data.line_strength, data.trigger.phrase if data.trigger else ""),
        code=diffusers_code(data.lora, prompt, data.line_strength, data.base, data.pipeline),
        previews=_previews(data),
        curves=curves(data),
        thumbnails=data.thumbnails[:THUMBNAILS],
        file=_file_facts(data.lora),
    )


def _previews(data: ReportData) -> list[tuple[str, list[tuple[int, Image]]]]:
    """For each prompt its pictures by step; prompts in the order of their first appearance."""
    rows: dict[str, list[tuple[int, Image]]] = {}
    for step, shown in data.previews:
        for prompt, image in shown:
            rows.setdefault(prompt, []).append((step, image))
    return [(prompt, sorted(cells, key=lambda cell: cell[0])) for prompt, cells in rows.items()]


def _file_facts(lora: LoraFile) -> list[tuple[str, str]]:
    size = f"{lora.size / 1e6:,.1f} MB" if lora.size >= 1e5 else f"{lora.size / 1e3:,.1f} kB"
    return [("File", lora.name), ("Size", size), ("AutoV2", lora.auto_v2), ("SHA-256", lora.sha256)]
