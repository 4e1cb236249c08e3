"""`lora-scripts extract`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import add_writing, file_of, number, path
from lora_scripts.events import Sink

HELP = "find the LoRA between two models"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", metavar="FILE", type=path, required=True, help="what the other was made from: file or folder")
    add("--tuned", metavar="FILE", type=path, required=True, help="the fine-tuned model: file or folder")
    add("--output", metavar="FILE", type=file_of(".safetensors"), required=True, help="the LoRA to write")
    add("--rank", metavar="N", type=number(int, 1, 4096), help="the most (default: 32, without --energy)")
    add("--energy", metavar="X", type=number(float, 1e-6, 1), help="of each layer, the share to keep, 0.95")
    add("--conv", action="store_true", help="3 x 3 convolutions too")
    add_writing(parser, "auto (default): fp16; fp32, bf16, fp16")


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Writes what a fine-tuned model has beyond its base as a LoRA, and tells the rank of the difference."""
    from lora_scripts.workshop.extract import ExtractOptions, extract_file

    extract_file(ExtractOptions(**{k: v for k, v in vars(options).items() if k not in ("command", "name")}))
