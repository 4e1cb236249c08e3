"""`lora-scripts demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.cli import train
from lora_scripts.cli.options import default, path
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.demo.main import DemoResult

HELP = "train a LoRA on the bundled miniature world"
event_words = train.event_words


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", type=path, default=Path("output/demo"), help=default("%(default)s"))


def call(options: argparse.Namespace, sink: Sink) -> DemoResult:
    """Trains a LoRA on the bundled miniature world: no downloads, no GPU, about three minutes."""
    from lora_scripts.demo.main import run_demo

    return run_demo(options.output, sink=sink)


def words(result: DemoResult) -> list[str]:
    """What the training leaves, and what to type next."""
    if result.trained is None:
        folder = result.report.parent.parent
        return [f"the demo has run already; its report: {result.report}", f"remove {folder} to run it again"]
    return [*train.words(result.trained), "", f"try it: {result.command}"]
