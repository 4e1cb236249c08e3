"""`lora-scripts card`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import file_of, number, path
from lora_scripts.events import Sink

HELP = "write a model card and a thumbnail for a LoRA"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("lora", metavar="LORA", type=file_of(".safetensors"), help="the LoRA file")
    add("--grid", metavar="DIR", type=path, help="a grid of it, for pictures and the recommended strength")
    add("--report", metavar="DIR", type=path, help="its run's folder, for pictures (default: the LoRA's, if it is one)")
    add("--output", metavar="DIR", type=path, help="where README.md and its pictures go (default: LORA-card beside it)")
    add("--base-model", metavar="NAME", help="the base's name on Hugging Face, for the header")
    add("--license", metavar="NAME", help="such as creativeml-openrail-m, for the header")
    add("--trigger", metavar="TEXT", help="what to write in a prompt (default: what the file or its captions tell)")
    text = "the recommended strength (default: by the grid's measures)"
    add("--strength", metavar="X", type=number(float, -10, 10), help=text)
    add("--description", metavar="TEXT", default="", help="what it is, in a sentence")
    add("--overwrite", action="store_true", help="replace files that are there")


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Writes a model card with the Hugging Face header, and beside the LoRA the thumbnail and the two JSON files that
    WebUIs look for."""
    from lora_scripts.workshop.card import CardOptions, write_card

    write_card(CardOptions(**{key: value for key, value in vars(options).items() if key not in ("command", "name")}))
