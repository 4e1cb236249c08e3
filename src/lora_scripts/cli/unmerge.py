"""`lora-scripts unmerge`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.cli import files
from lora_scripts.cli.options import add_loras, add_writing, asked, path, weighted_loras
from lora_scripts.events import Sink
from lora_scripts.units import percent

if TYPE_CHECKING:
    from lora_scripts.workshop.merge import Unmerged

HELP = "take LoRAs out of a model again"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_loras(parser, "as they were merged: a.safetensors:0.8")
    add("--model", metavar="FILE", type=path, required=True, help="the merged model, file or folder")
    add("--output", metavar="FILE", type=path, required=True, help="the model to write, in the layout it came in")
    add("--compare", metavar="FILE", type=path, help="the base as it was: tells the true difference")
    text = "of a base in one file: that of its text encoder, if LoRAs change it, too; written beside the output"
    add("--text-encoder", metavar="FILE", type=path, help=text)
    add_writing(parser, "auto (default): as the model; fp32, bf16, fp16")


def call(options: argparse.Namespace, sink: Sink) -> Unmerged:
    """Subtracts merged LoRAs from a model: the base again, to within the rounding that it tells."""
    from lora_scripts.workshop.merge import unmerge

    return unmerge(loras=weighted_loras(options), **asked(options, "loras"), sink=sink)


def words(result: Unmerged) -> list[str]:
    lines = [
        *files.rewritten(result),
        f"rounding: no weight is further from the base than {result.bound:.1e}, on average {result.mean_bound:.1e}, if "
        "it was merged once, in this precision",
    ]
    if result.compared is not None and result.compared_with is not None:
        far = result.compared
        lines.append(
            f"compared with {result.compared_with.name}: largest difference {far.largest:.1e}, mean {far.mean:.1e}, "
            f"{percent(far.equal, 1)} of the weights are bit for bit the same"
        )
    return [*lines, *(f"note: {note}" for note in result.notes)]
