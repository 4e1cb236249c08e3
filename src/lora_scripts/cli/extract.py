"""`lora-scripts extract`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.cli import files
from lora_scripts.cli.options import add_writing, asked, number, path
from lora_scripts.cli.show import columns
from lora_scripts.events import Sink
from lora_scripts.units import number_of, percent

if TYPE_CHECKING:
    from lora_scripts.workshop.extract import ExtractedLora

HELP = "find the LoRA between two models"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", metavar="FILE", type=path, required=True, help="what the other was made from: file or folder")
    add("--tuned", metavar="FILE", type=path, required=True, help="the fine-tuned model: file or folder")
    add("--output", metavar="FILE", type=path, required=True, help="the LoRA to write: .safetensors, or a folder")
    add("--rank", metavar="N", type=number(int, 1, 4096), help="the most (default: 32, without --energy)")
    add("--energy", metavar="X", type=number(float, 1e-6, 1), help="of each layer, the share to keep, 0.95")
    add("--conv", action="store_true", help="3 x 3 convolutions too")
    add_writing(parser, "auto (default): fp16; fp32, bf16, fp16")


def call(options: argparse.Namespace, sink: Sink) -> ExtractedLora:
    """Writes what a fine-tuned model has beyond its base as a LoRA, and tells the rank of the difference."""
    from lora_scripts.workshop.extract import extract

    return extract(**asked(options), sink=sink)


def words(result: ExtractedLora) -> list[str]:
    cells = [[b, str(r.layers), str(r.least), f"{r.mean:.1f}", str(r.most)] for b, r in result.blocks.items()]
    lines = columns(("rank of the difference", "layers", "least", "mean", "most"), cells)
    lines.append(files.energy(result.energy_kept, result.worst_energy_kept, result.worst_module))
    if result.only_rounding:
        lines.append(f"no more than rounding in {number_of(result.only_rounding, 'layer')}, left out")
    if result.elsewhere is None:
        lines.append("note: the two models lie in different layouts, so biases and norms were not compared")
    if others := result.others:
        lines.append(
            f"note: {len(others)} other weights differ too, with {percent(result.elsewhere_share, 1)} of the whole "
            f"difference, which this LoRA does not hold; first {others[0]}"
        )
    if result.vae_differs:
        lines.append("note: the VAE differs too; use that of the fine-tuned model")
    return [*lines, *files.written(result)]
