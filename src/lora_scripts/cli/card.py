"""`lora-scripts card`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.cli.options import asked, file_of, folder, number, path
from lora_scripts.events import Event, Saved, Sink

if TYPE_CHECKING:
    from lora_scripts.workshop.model_card import WrittenCard

HELP = "write a model card and a thumbnail for a LoRA"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("lora", metavar="LORA", type=file_of(".safetensors"), help="the LoRA file")
    add("--grid", metavar="DIR", type=path, help="a grid of it, for pictures and the recommended strength")
    add("--report", metavar="DIR", type=path, help="its run's folder, for pictures and strength (default: the LoRA's)")
    add("--output", metavar="DIR", type=folder, help="where README.md and its pictures go (default: LORA-card beside)")
    add("--base-model", metavar="NAME", help="the base's name on Hugging Face, for the header")
    add("--license", metavar="NAME", help="such as creativeml-openrail-m, for the header")
    add("--trigger", metavar="TEXT", help="what to write in a prompt (default: what the file or its captions tell)")
    text = "the recommended strength (default: as the grid or the run measured, else 1)"
    add("--strength", metavar="X", type=number(float, -10, 10), help=text)
    add("--description", metavar="TEXT", default="", help="what it is, in a sentence")
    text = "of the card: en or zh (default: the run's language, else en)"
    add("--language", choices=("en", "zh"), help=text)
    add("--overwrite", action="store_true", help="replace files that are there")


def call(options: argparse.Namespace, sink: Sink) -> WrittenCard:
    """Writes a model card with the Hugging Face header, and beside the LoRA the thumbnail and the two JSON files that
    WebUIs look for."""
    from lora_scripts.families.table import require_lora

    require_lora(options.lora, "name a LoRA's file")  # before torch is there
    from lora_scripts.workshop.model_card import write_card

    return write_card(**asked(options), sink=sink)


def words(result: WrittenCard) -> list[str]:
    lines = [str(file) for file in result.files]
    if result.license is None:
        lines.append("the header has no license yet: give one with --license, such as creativeml-openrail-m")
    if not result.base_model_asked:
        name = result.base_model or "empty"
        lines.append(f"base_model in the header is {name}: --base-model sets its name on Hugging Face")
    if not result.pictures:
        lines.append("there is no picture: draw a grid and name it with --grid, or the run's folder with --report")
    return lines


def event_words(event: Event) -> str | None:
    """The files stand in the result."""
    return "" if isinstance(event, Saved) else None
