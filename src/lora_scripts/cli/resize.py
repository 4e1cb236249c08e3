"""`lora-scripts resize`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.cli import files
from lora_scripts.cli.options import add_writing, asked, number, path
from lora_scripts.cli.show import columns
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.workshop.resize import Resized

HELP = "make a LoRA smaller"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("lora", metavar="FILE", type=path, help="the LoRA")
    add("--output", metavar="PATH", type=path, required=True, help="the .safetensors file, or folder, to write")
    add("--rank", metavar="N", type=number(int, 1, 4096), help="the most that a layer gets")
    add("--energy", metavar="X", type=number(float, 1e-6, 1), help="of each layer, the share to keep, 0.95")
    add_writing(parser)


def call(options: argparse.Namespace, sink: Sink) -> Resized:
    """Writes a LoRA at a smaller rank, the best of that size, and tells how much of it is kept."""
    from lora_scripts.workshop.resize import resize

    return resize(**asked(options), sink=sink)


def words(result: Resized) -> list[str]:
    cells = [[block, str(r.least), f"{r.mean:.1f}", str(r.most)] for block, r in result.blocks.items()]
    lines = columns(("rank kept", "least", "mean", "most"), cells)
    lines.append(files.energy(result.energy_kept, result.worst_energy_kept, result.worst_module))
    lines.append(
        f"rank {result.rank_before} before, {result.rank} now: every module has the largest, padded with zeros"
    )
    if result.rank_asked is not None and result.rank_asked > result.rank_before:
        lines.append(f"note: rank {result.rank_before} already held all of it; a larger rank adds nothing")
    return [*lines, *files.written(result)]
