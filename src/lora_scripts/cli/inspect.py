"""`lora-scripts inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import units
from lora_scripts.chinese.terminal import AsItIs, told
from lora_scripts.chinese.widths import ljust, rjust
from lora_scripts.cli.options import path, require_models
from lora_scripts.cli.show import columns
from lora_scripts.errors import UserError
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.loras.portrait import Portrait
    from lora_scripts.workshop.inspect import Inspected, Report

HELP = "say what a LoRA or a checkpoint is, and what looks wrong with it"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="PATH", type=path, help="a .safetensors file, PEFT's folder, or a folder of files for a table")


def call(options: argparse.Namespace, sink: Sink) -> Inspected:
    """Says what a file is: family, rank, norms by block, hashes, trigger words, where it loads, what looks wrong."""
    require_models([("PATH", options.file, "model")])
    from lora_scripts.workshop.inspect import inspect

    return inspect(options.file, sink=sink)


def plain(result: Inspected) -> object:
    """For JSON: one report, or those of a folder."""
    return result.reports if result.is_folder else result.reports[0]


def words(result: Inspected) -> list[str]:
    return _table(result.reports, result.path) if result.is_folder else _page(result.reports[0])


def faults(result: Inspected) -> Sequence[UserError]:
    return result.faults


def _page(report: Report) -> list[str]:
    lora = report.lora
    family = f", {report.family}" if lora else ""
    lines = [f"{report.path}: {report.what}{family}, {units.size(report.size)}"]
    lines.append(f"precision: {', '.join(f'{name} ({count:,})' for name, count in report.dtypes.items())}")
    if lora:
        lines += [f"names: {report.naming}; {len(lora.modules)} modules, {_ranks(lora)}", "", *_blocks(lora)]
    lines += [f"{part}: {count:,} numbers" for part, count in report.parts.items()]
    lines += ["", *(f"{name}: {value}" for name, value in report.hashes.items() if value)]
    if report.triggers:
        triggers = ", ".join(word + (f" ({count})" if count else "") for word, count in report.triggers)
        lines.append(f"trigger words: {triggers}")
    if report.metadata:
        lines.append(f"metadata: {len(report.metadata)} keys, see lora-scripts metadata")
    if report.loads:
        lines += ["", *(f"{name}: {answer}" for name, answer in report.loads.items())]
        if "PEFT" not in report.loads:
            lines.append("diffusers, PEFT: run lora-scripts verify with a --base")
    return [*lines, "", *([f"! {problem}" for problem in report.problems] or ["nothing looks wrong"])]


def _blocks(lora: Portrait) -> list[str]:
    name, count, sigma, where = map(told, ("block", "modules", "largest σ", "where"))
    lines: list[str] = [AsItIs(f"{ljust(name, 18)}{rjust(count, 8)}{'|ΔW|':>11}{rjust(sigma, 11)}  {where}")]
    for block in lora.blocks:
        figures = f"{block.modules:>8}{block.frobenius:>11.4g}{block.spectral:>11.4g}"
        lines.append(AsItIs(f"{ljust(told(block.name), 18)}{figures}  {block.largest}"))
    return lines


def _table(reports: Sequence[Report], folder: Path) -> list[str]:
    """A line for each file of a folder."""
    head = ("file", "what", "rank", "alpha", "modules", "size", "AutoV2", "looks wrong")
    rows = []
    for report in reports:
        lora, what = report.lora, told(report.what).removeprefix("a ")
        rows.append(
            (
                report.path.relative_to(folder).as_posix(),
                f"{what}, {told(report.family)}" if lora else what,
                units.span(lora.ranks) if lora else "",
                units.span(lora.alphas) if lora else "",
                str(len(lora.modules)) if lora else "",
                units.size(report.size),
                report.hashes.get("AutoV2", ""),
                f"{len(report.problems)}: {report.problems[0]}" if report.problems else "",
            )
        )
    return [AsItIs(line.removeprefix("  ")) for line in columns(head, rows, left=len(head))]


def _ranks(lora: Portrait) -> str:
    return f"rank {units.span(lora.ranks)}, alpha {units.span(lora.alphas)}, alpha / rank {units.span(lora.scales)}"
