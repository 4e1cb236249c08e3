"""`lora-scripts resize`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import add_writing, file_of, number, path
from lora_scripts.events import Sink

HELP = "make a LoRA smaller"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("lora", metavar="FILE", type=path, help="the LoRA")
    add("--output", metavar="FILE", type=file_of(".safetensors"), required=True, help="the file to write")
    add("--rank", metavar="N", type=number(int, 1, 4096), help="the most that a layer gets")
    add("--energy", metavar="X", type=number(float, 1e-6, 1), help="of each layer, the share to keep, 0.95")
    add_writing(parser)


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Writes a LoRA at a smaller rank, the best of that size, and tells how much of it is kept."""
    from lora_scripts.workshop.resize import ResizeOptions, resize_file

    resize_file(ResizeOptions(**{k: v for k, v in vars(options).items() if k not in ("command", "name")}))
