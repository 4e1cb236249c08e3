"""`lora-scripts new`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.cli.options import base_of, file_of, path
from lora_scripts.data.texts.records import holds_records
from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Note, Sink
from lora_scripts.units import typed

if TYPE_CHECKING:
    from lora_scripts.adopt.command import Adopted
    from lora_scripts.run.first_config import NewConfig

HELP = "write a config for your pictures or records and your base model"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("lora", metavar="NAME", help="of the LoRA, as prompts will call it: <lora:NAME:0.8>")
    add(
        "--data",
        metavar="DIR",
        type=path,
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
    text = "for an edit: the folder of what the pictures of --data are made from, under the same names"
    add("--references", metavar="DIR", type=path, help=text)
    add("--trigger", metavar="WORD", default="", help="the word that is to call it; previews hold it")
    text = (
        "a config of kohya's trainers or GUI, ai-toolkit, OneTrainer or musubi-tuner, or the script that starts one, "
    )
    add(
        "--from",
        dest="source",
        metavar="FILE",
        type=path,
        help=text + "to be written in our keys (docs/coming-from.md)",
    )
    text = "the file to write (default: configs/NAME.yaml)"
    add("--output", metavar="FILE", type=file_of(".yaml", ".yml"), help=text)


def call(options: argparse.Namespace, sink: Sink) -> NewConfig | Adopted:
    """Looks at pictures or records and base and writes a config for them, every line with its reason."""
    if options.source is not None:
        return _adopted(options)
    if options.data is None:
        raise UserError("the following arguments are required: --data", hint="see lora-scripts new --help")
    if options.references is not None and (options.purpose != "style" or options.trigger):
        word = "--trigger" if options.trigger else "--for"
        raise UserError(f"{word} is not for an edit, which its captions call", hint="leave it out")
    if options.base is None:
        from lora_scripts.families.on_machine import find, no_base

        purpose = ["--for", "character"] if options.purpose == "character" else []
        purpose += ["--references", options.references.as_posix()] if options.references else []
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
    words, purpose = options.trigger.strip(), options.purpose
    return new_config(options.lora, options.data, base, purpose, words, options.output, options.references)


def _adopted(options: argparse.Namespace) -> Adopted:
    """The config of another trainer in our keys."""
    others = {"--trigger": options.trigger, "--for": options.purpose != "style", "--references": options.references}
    for option, given in others.items():
        if given:
            raise UserError(f"{option} is not for --from: the other config says what is trained", hint="leave it out")
    from lora_scripts.adopt.command import adopt

    return adopt(options.lora, options.source, options.data, options.base, options.output)


def _base(options: argparse.Namespace, sink: Sink) -> Path:
    """The base on the disk. UserErrors where it is none for such data."""
    if options.base.is_dir() and holds_records(options.data):
        from lora_scripts.families import table

        table.require_texts(options.base)  # or a line about pictures would tell what the folder is not
    return base_of(options.base, sink)


def words(result: NewConfig | Adopted) -> list[str]:
    """What was written, and what to type next."""
    from lora_scripts.run.first_config import NewConfig

    config = result.path.as_posix()
    if not isinstance(result, NewConfig):
        return _words_of_adopted(result)
    look, plan, train = (typed(["lora-scripts", word, "--config", config]) for word in ("check", "plan", "train"))
    return [
        f"written: {config} ({result.pictures} {result.samples}, {result.base}, {result.steps} steps)",
        *(f"before that: {note}" for note in result.notes),
        f"look at the {result.samples}: {look}",
        f"how long it will take: {plan}",
        f"train: {train}",
    ]


def _words_of_adopted(result: Adopted) -> list[str]:
    """What of the other config is in ours, all that is not, and what to type next."""
    config = result.path.as_posix()
    plan, train = (typed(["lora-scripts", word, "--config", config]) for word in ("plan", "train"))
    steps = f", {result.steps} steps" if result.steps else ""
    lists = {"always so, or decided by the program here": result.decided, "says nothing beyond that": result.idle}
    return [
        f"written: {config} ({len(result.settings)} keys from {result.trainer}{steps})",
        *(f"not carried over: {left.theirs}: {left.reason}" for left in result.left),
        *(f"{head}: {', '.join(sorted(set(names)))}" for head, names in lists.items() if names),
        *(f"before that: {note}" for note in result.notes),
        f"how long it will take: {plan}",
        f"train: {train}",
    ]
