"""`lora-scripts metadata`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.chinese.terminal import AsItIs
from lora_scripts.cli.options import argument, file_of, path, require_models
from lora_scripts.errors import UserError
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.workshop.reheader import ChangedMetadata, FileMetadata

HELP = "show or change what a LoRA file says of itself"


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError("must be key=value")
    return key.strip(), value


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", type=path, help="the .safetensors file; changed in place unless --output is given")
    text = "set a value; an empty one takes the key out"
    add("--set", metavar="KEY=VALUE", nargs="+", action="extend", type=argument(_pair), default=[], help=text)
    add("--strip", action="store_true", help="keep only what programs read")
    add("--private", action="store_true", help="take out captions, folder names, paths and session marks")
    add("--output", metavar="FILE", type=file_of(".safetensors"), help="write there, and leave FILE as it is")


def call(options: argparse.Namespace, sink: Sink) -> FileMetadata | ChangedMetadata:
    """Shows the metadata of a .safetensors file, or changes it; the tensors stay as they are, byte for byte."""
    require_models([("FILE", options.file, "model")])
    if options.file.is_dir():
        raise UserError("is a folder, not a file", file=options.file, hint="name the .safetensors file in it")
    from lora_scripts.workshop.reheader import change, show

    if not (options.set or options.strip or options.private):
        if options.output:
            raise UserError("--output does nothing without --set, --strip or --private", hint="say what to change")
        return show(options.file)
    output = options.output or options.file
    return change(options.file, output, dict(options.set), strip=options.strip, make_private=options.private)


def words(result: FileMetadata | ChangedMetadata) -> list[str]:
    from lora_scripts.workshop.reheader import FileMetadata

    if isinstance(result, FileMetadata):
        return [_row(*item) for item in result.metadata.items()] or [f"{result.file}: no metadata"]
    lines = [
        f"{word}: {', '.join(keys)}" for word, keys in (("removed", result.removed), ("added", result.added)) if keys
    ]
    lines += [f"changed: {key} = {value[:120]}" for key, value in result.changed.items()]
    return [*lines, f"written: {result.output}"]


def _row(key: str, value: str) -> str:
    """Long values are cut."""
    value = " ".join(value.split())
    return AsItIs(f"{key} = {value[:200]}" + (f"… ({len(value):,} letters)" if len(value) > 200 else ""))
