"""`lora-scripts unmerge`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import add_writing, argument, path, weighted
from lora_scripts.events import Sink

HELP = "take LoRAs out of a model again"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "loras",
        metavar="FILE:WEIGHT",
        nargs="+",
        type=argument(weighted),
        help="as they were merged: a.safetensors:0.8",
    )
    add("--model", metavar="FILE", dest="base", type=path, required=True, help="the merged model, file or folder")
    add("--output", metavar="FILE", type=path, required=True, help="the model to write, in the layout it came in")
    add("--compare", metavar="FILE", type=path, help="the base as it was: tells the true difference")
    add_writing(parser, "auto (default): as the model; fp32, bf16, fp16")


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Subtracts merged LoRAs from a model: the base again, to within the rounding that it tells."""
    from lora_scripts.workshop.common import Weighted
    from lora_scripts.workshop.merge import MergeOptions, unmerge_files

    values = {key: value for key, value in vars(options).items() if key not in ("command", "name", "loras")}
    unmerge_files(MergeOptions(loras=tuple(Weighted(*lora) for lora in options.loras), **values))
