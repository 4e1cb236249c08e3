"""`lora-scripts new`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.cli.options import base_of, file_of, path
from lora_scripts.data.texts.records import holds_records
from lora_scripts.errors import Faults, raise_all
from lora_scripts.events import Note, Sink
from lora_scripts.units import typed

if TYPE_CHECKING:
    from lora_scripts.run.first_config import NewConfig

HELP = "write a config for your pictures or records and your base model"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("lora", metavar="NAME", help="of the LoRA, as prompts will call it: <lora:NAME:0.8>")
    add(
        "--data",
        metavar="DIR",
        type=path,
        required=True,
        help="the folder of your pictures; for a language model the file or folder of records",
    )
    text = (
        "the checkpoint: .safetensors, the folder of a model, or hf:owner/name/file (without it: which ones are here)"
    )
    add("--base", metavar="FILE", type=path, help=text)
    kinds = ("style", "character")
    add(
        "--for", dest="purpose", choices=kinds, default="style", help="style (default), or character: a person, a thing"
    )
    add("--trigger", metavar="WORD", default="", help="the word that is to call it; previews hold it")
    text = "the file to write (default: configs/NAME.yaml)"
    add("--output", metavar="FILE", type=file_of(".yaml", ".yml"), help=text)


def call(options: argparse.Namespace, sink: Sink) -> NewConfig:
    """Looks at pictures or records and base and writes a config for them, every line with its reason."""
    if options.base is None:
        from lora_scripts.families.on_machine import find, no_base

        purpose = ["--for", "character"] if options.purpose == "character" else []
        given = typed(["lora-scripts", "new", options.lora, "--data", options.data.as_posix(), *purpose])
        lines, error = no_base(find(), given)
        for line in lines:
            sink(Note(line))
        raise error
    from lora_scripts.run.first_config import file_for, in_the_way, new_config

    faults = Faults(in_the_way(options.lora, options.data, file_for(options.lora, options.output)))
    base = faults.attempt(lambda: _base(options, sink))
    raise_all(faults)
    assert base is not None
    return new_config(options.lora, options.data, base, options.purpose, options.trigger.strip(), options.output)


def _base(options: argparse.Namespace, sink: Sink) -> Path:
    """The base on the disk. UserErrors where it is none for such data."""
    if options.base.is_dir() and holds_records(options.data):
        from lora_scripts.families import table

        table.require_texts(options.base)  # or a line about pictures would tell what the folder is not
    return base_of(options.base, sink)


def words(result: NewConfig) -> list[str]:
    """What was written, and what to type next."""
    config = result.path.as_posix()
    look, plan, train = (typed(["lora-scripts", word, "--config", config]) for word in ("check", "plan", "train"))
    return [
        f"written: {config} ({result.pictures} {result.samples}, {result.base}, {result.steps} steps)",
        *(f"before that: {note}" for note in result.notes),
        f"look at the {result.samples}: {look}",
        f"how long it will take: {plan}",
        f"train: {train}",
    ]
