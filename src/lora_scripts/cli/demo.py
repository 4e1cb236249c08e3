"""`lora-scripts demo`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.cli import evaluate, train
from lora_scripts.cli.options import default, folder
from lora_scripts.demo.place import PICTURES, WORDS
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.demo.main import DemoResult
    from lora_scripts.demo.reports import WordsDemoResult

HELP = "train a LoRA on the bundled miniature world, or words"
event_words = train.event_words
FOLDERS = {"pictures": PICTURES, "words": WORDS}
"""World -> the folder that its demo writes to."""


def add(parser: argparse.ArgumentParser) -> None:
    text = default("pictures", "pictures in a style, or words: reports as one house writes them")
    parser.add_argument("world", metavar="WORLD", nargs="?", choices=tuple(FOLDERS), default="pictures", help=text)
    text = default(" or ".join(folder.as_posix() for folder in FOLDERS.values()))
    parser.add_argument("--output", metavar="DIR", type=folder, help=text)


def call(options: argparse.Namespace, sink: Sink) -> DemoResult | WordsDemoResult:
    """Trains a LoRA on the bundled miniature world: no downloads, no GPU, two to three minutes."""
    output = options.output or FOLDERS[options.world]
    if options.world == "words":
        from lora_scripts.demo.reports import run_words_demo

        return run_words_demo(output, sink=sink)
    from lora_scripts.demo.main import run_demo

    return run_demo(output, sink=sink)


def words(result: DemoResult | WordsDemoResult) -> list[str]:
    """What the training leaves, and what to type next."""
    evaluated = getattr(result, "evaluated", None)
    measured = evaluate.words(evaluated) if evaluated is not None else []
    if result.trained is None:
        folder = result.report.parent.parent
        told = [f"the demo has run already; its report: {result.report}", f"remove {folder} to run it again"]
        return [*told, *measured, *(["", f"try it: {result.command}"] if measured else [])]
    return [*train.words(result.trained), *measured, "", f"try it: {result.command}"]
