"""One self-contained HTML page about a finished run: pictures, styles and script are inside, nothing is fetched."""

from __future__ import annotations

from PIL.Image import Image

from lora_scripts.report.curves import curves
from lora_scripts.report.data import THUMBNAILS, LoraFile, ReportData
from lora_scripts.report.environment import fill
from lora_scripts.report.usage import diffusers_code, tag
from lora_scripts.units import size


def render(data: ReportData) -> str:
    """The whole page as HTML."""
    prompt = data.comparisons[0].prompt if data.comparisons else ""
    edits = any(one.made_from for one in data.comparisons)
    return fill(
        "report.html",
        report=data,
        language=data.language,
        tag=tag(data.lora.stem, data.line_strength, data.trigger.phrase if data.trigger else ""),
        code=diffusers_code(data.lora, prompt, data.line_strength, data.base, data.pipeline, edits=edits),
        edits=edits,
        previews=_previews(data),
        curves=curves(data),
        thumbnails=data.thumbnails[:THUMBNAILS],
        file=_file_facts(data.lora),
    )


def _previews(data: ReportData) -> list[tuple[str, list[tuple[int, Image]]]]:
    """For each preview its prompt and its pictures by step; two of one prompt, with other seeds, are two rows."""
    rows: dict[tuple[int, str], list[tuple[int, Image]]] = {}
    for step, shown in data.previews:
        for number, (prompt, image) in enumerate(shown):
            if image is not None:
                rows.setdefault((number, prompt), []).append((step, image))
    ordered = sorted(rows.items(), key=lambda row: row[0][0])
    return [(prompt, sorted(cells, key=lambda cell: cell[0])) for (_, prompt), cells in ordered]


def _file_facts(lora: LoraFile) -> list[tuple[str, str]]:
    return [("File", lora.name), ("Size", size(lora.size)), ("AutoV2", lora.auto_v2), ("SHA-256", lora.sha256)]
