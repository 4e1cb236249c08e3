"""`lora-scripts combine`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.cli import files
from lora_scripts.cli.options import add_loras, add_writing, asked, number, path, weighted_loras
from lora_scripts.cli.show import as_json, columns
from lora_scripts.errors import UserError
from lora_scripts.events import Sink
from lora_scripts.units import percent

if TYPE_CHECKING:
    from lora_scripts.workshop.combine import Combination, CombinedFile, Meeting

HELP = "put several LoRAs into one file"
METHODS = ("concat", "svd", "linear", "ties", "dare")


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_loras(parser)
    add("--output", metavar="FILE", type=path, help="the .safetensors file, or folder, to write")
    text = "concat: the exact sum (default); svd: that sum at a smaller rank; linear, ties, dare: see docs"
    add("--method", metavar="NAME", choices=METHODS, default="concat", help=text)
    add("--rank", metavar="N", type=number(int, 1, 4096), help="svd, ties, dare: the most (default: the largest given)")
    add("--energy", metavar="X", type=number(float, 1e-6, 1), help="svd, ties, dare: the share to keep, 0.95")
    add("--density", metavar="X", type=number(float, 1e-3, 1), help="ties, dare: entries that stay (default: 0.5)")
    add("--seed", metavar="N", type=number(int, 0, 2**32 - 1), help="dare: which entries it drops (default: 1)")
    add("--report-only", action="store_true", help="only tell how they overlap; write nothing")
    add_writing(parser)


def call(options: argparse.Namespace, sink: Sink) -> Combination:
    """Tells how LoRAs overlap, block by block, with weights to try; then writes them as one LoRA."""
    if options.report_only and options.output is not None:
        raise UserError("--report-only writes nothing", hint="leave out --output, or --report-only")
    if not options.report_only and options.output is None:
        raise UserError("where to?", hint="give --output both.safetensors, or --report-only")
    from lora_scripts.workshop.combine import combine

    return combine(loras=weighted_loras(options), **asked(options, "loras", "report_only"), sink=sink)


def plain(result: Combination) -> object:
    """For JSON: what was written stands beside the report."""
    fields = as_json(result)
    assert isinstance(fields, dict)
    written = fields.pop("written") or {}
    return fields | written


def words(result: Combination) -> list[str]:
    names = [f"{part.file.name} x {part.weight:g}" for part in result.files]
    rows = [
        [name, str(part.rank), str(part.modules), f"{part.norm:.3g}"]
        for name, part in zip(names, result.files, strict=True)
    ]
    lines = columns(("file x weight", "rank", "modules", "|ΔW|"), rows)
    lines.append(f"together |ΔW| {result.together:.3g}")
    for whole in _of_all_blocks(result):
        head = ("block", "cosine", "overlap", "|ΔW| first", "second", "")
        lines += ["", f"{names[whole.a]}  and  {names[whole.b]}:"]
        lines += columns(head, [_cells(pair) for pair in [*_of_each_block(result, whole), whole]])
    lines += ["", *_fights(names, result), _suggestion(result)]
    return lines if result.written is None else [*lines, "", *_written(result.written)]


def _of_all_blocks(result: Combination) -> list[Meeting]:
    return [pair for pair in result.pairs if pair.block == "all"]


def _of_each_block(result: Combination, whole: Meeting) -> list[Meeting]:
    return [pair for pair in result.pairs if (pair.a, pair.b) == (whole.a, whole.b) and pair is not whole]


def _cells(pair: Meeting) -> list[str]:
    cosine = round(pair.cosine, 2) + 0.0  # no -0.00
    norms = [f"{norm:.3g}" for norm in pair.norms]
    return [pair.block, f"{cosine:.2f}", f"{pair.overlap:.2f}", *norms, pair.verdict or ""]


def _fights(names: Sequence[str], result: Combination) -> list[str]:
    """A line for every two files that fight, with their blocks."""
    lines = []
    for whole in _of_all_blocks(result):
        blocks = [pair.block for pair in _of_each_block(result, whole) if pair.verdict == "fights"]
        if blocks:
            lines.append(
                f"fights: {names[whole.a]} and {names[whole.b]} in {', '.join(blocks)}: there one takes back what the "
                "other does; leave one out, or try --method ties"
            )
    return lines or ["no block fights"]


def _suggestion(result: Combination) -> str:
    weights = [(part.file.name, part.weight, round(part.suggested, 2)) for part in result.files]
    if all(abs(new - old) < 0.02 for _, old, new in weights):
        return "suggested weights: as given (no two of them pull the same way)"
    each = ", ".join(f"{name}:{new:g}" for name, _, new in weights if new)
    told = f"suggested weights, at which each comes out as strong as it would alone: {each}"
    if weak := [name for name, _, new in weights if not new]:
        told += (
            f"; none for {', '.join(weak)}: so weak that the others do more of what it does than it does alone. "
            "Look at pictures with it and without, as lora-scripts grid draws them"
        )
    return told


def _written(file: CombinedFile) -> list[str]:
    lines = files.written(file)
    if file.energy_kept is not None and file.worst_energy_kept is not None and file.worst_module is not None:
        lines.append(files.energy(file.energy_kept, file.worst_energy_kept, file.worst_module))
    if file.off_the_sum is not None:
        lines.append(
            f"note: linear adds the matrices, not the changes; this differs from the sum of the LoRAs by "
            f"{percent(file.off_the_sum)} of that sum. concat and svd keep the sum"
        )
    if file.widened:
        lines.append(f"in {file.precision}, so that the sum is exact; --precision fp16 halves the file and rounds it")
    return lines
