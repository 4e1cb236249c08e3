"""`lora-scripts merge`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import add_writing, argument, path, weighted
from lora_scripts.events import Sink

HELP = "bake LoRAs into a base model"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "loras",
        metavar="FILE:WEIGHT",
        nargs="+",
        type=argument(weighted),
        help="a.safetensors:0.8; weight 1 if left out",
    )
    add("--base", metavar="FILE", type=path, required=True, help="the checkpoint: .safetensors or diffusers folder")
    add("--output", metavar="FILE", type=path, required=True, help="the model to write, in the layout of the base")
    add_writing(parser, "auto (default): as the base; fp32, bf16, fp16")


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Writes a base model with LoRAs added to its weights, tensor by tensor; everything else in it stays as it is."""
    from lora_scripts.workshop.common import Weighted
    from lora_scripts.workshop.merge import MergeOptions, merge_files

    values = {key: value for key, value in vars(options).items() if key not in ("command", "name", "loras")}
    merge_files(MergeOptions(loras=tuple(Weighted(*lora) for lora in options.loras), **values))
