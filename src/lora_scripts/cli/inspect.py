"""`lora-scripts inspect`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import path, require_models
from lora_scripts.events import Sink

HELP = "say what a LoRA or a checkpoint is, and what looks wrong with it"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="PATH", type=path, help="a .safetensors file, PEFT's folder, or a folder of files for a table")
    add("--json", action="store_true", help="everything, for a program to read")


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Says what a file is: family, rank, norms by block, hashes, trigger words, where it loads, what looks wrong."""
    require_models([("PATH", options.file, "model")])
    from lora_scripts.workshop.inspect import inspect

    inspect(options.file, as_json=options.json)
