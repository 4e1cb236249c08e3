"""`lora-scripts demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_scripts.cli.options import default, path
from lora_scripts.events import Sink

HELP = "train a LoRA on the bundled miniature world"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", type=path, default=Path("output/demo"), help=default("%(default)s"))


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Trains a LoRA on the bundled miniature world: no downloads, no GPU, about three minutes."""
    from lora_scripts.demo.main import run_demo

    run_demo(options.output)
