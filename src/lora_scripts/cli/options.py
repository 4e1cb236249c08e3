"""Pieces of the command line: arguments that are checked while they are read, each fault in one line."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lora_scripts.chinese.terminal import in_chinese, told
from lora_scripts.chinese.widths import folded
from lora_scripts.config.values import base_fault, model_fault, parse_device, parse_path, parse_size
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.workshop.common import Weighted

T = TypeVar("T")
N = TypeVar("N", int, float)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_OF_FILES = frozenset((".html", ".htm", ".png", ".jpg", ".jpeg", ".md", ".txt", ".json", ".zip", ".safetensors"))
"""Endings by which a person means a file. Of others a name may be a version's: neon-1.5."""


class Parser(argparse.ArgumentParser):
    """argparse, but a usage error is a UserError of one line, and its help is as wide as the terminal, up to 110."""

    commands: Mapping[str, argparse.ArgumentParser] = MappingProxyType({})
    """Their parsers by name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, hint=f"see {self.prog} --help")


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size((110, 24)).columns, 110)
        width = columns - 2 * in_chinese()  # argparse counts letters, and 用法 takes two columns more than that
        super().__init__(prog, max_help_position=min(30, width // 3), width=width)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, told("usage: ") if prefix is None else prefix)

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and told(heading))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Examples stay whole, so that they can be copied."""
        if text.startswith((EXAMPLES_HEAD, FIRST_HEAD)):
            return told(text)
        return "\n".join(indent + line for line in self._split_lines(text, width))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return folded(told(" ".join(text.split())), width)


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """ "--output" and every other option -> what argparse knows of it."""
    return {word: action for action in parser._actions for word in action.option_strings}


EXAMPLES_HEAD = "examples:"
FIRST_HEAD = "first, "


def examples_text(examples: Sequence[tuple[str, str]]) -> str:
    """(what it is for, the command) of each, as a help ends with them."""
    return "\n".join([EXAMPLES_HEAD, *(f"  {purpose}:\n    {command}" for purpose, command in examples)])


def asked(options: argparse.Namespace, *without: str) -> dict[str, Any]:
    """The command's own arguments by name, for the function that it calls."""
    ours = ("command", "name", "json", *without)
    return {key: value for key, value in vars(options).items() if key not in ours}


def default(value: str, text: str = "the folder to write to") -> str:
    """A help text that tells the default."""
    return f"{text} (default: {value})"


def usual(text: str, such_as: int) -> str:
    """A help text whose default is the base's."""
    return default(f"the base's usual, such as {such_as}", text)


def argument(convert: Callable[[str], T]) -> Callable[[str], T]:
    """`convert` for argparse: its ValueError becomes the message."""

    def checked(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            what, semicolon, mend = str(error).partition("; ")
            raise argparse.ArgumentTypeError(f"{what}, not {text!r}{semicolon}{mend}") from None

    return checked


def number(kind: type[N], low: float, high: float) -> Callable[[str], N]:
    """A number from `low` to `high`."""

    def convert(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError("must be a whole number" if kind is int else "must be a number") from None
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")
        return value

    return argument(convert)


def file_of(*suffixes: str) -> Callable[[str], Path]:
    """A path that ends in one of `suffixes`, such as ".png"."""

    def convert(text: str) -> Path:
        if not text.lower().endswith(suffixes):
            raise ValueError(f"must be a {' or '.join(suffixes)} file")
        return parse_path(text)

    return argument(convert)


def _folder(text: str) -> Path:
    path = parse_path(text)
    if path.is_file() or (path.suffix.lower() in _OF_FILES and not path.is_dir()):
        raise ValueError("must be the name of a folder")
    return path


def weighted(text: str) -> tuple[Path, float]:
    """(path, weight) from "a.safetensors:0.8"; weight 1 if there is none, also after the colon of a drive (C:\\a)."""
    head, colon, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        if colon and head.lower().endswith(".safetensors"):
            raise ValueError("must be FILE:WEIGHT with a number such as 0.8 as the weight") from None
        return parse_path(text), 1.0
    if not colon or not head:
        raise ValueError("must be FILE:WEIGHT, such as a.safetensors:0.8")
    if not math.isfinite(weight):
        raise ValueError("must have a finite number as the weight")
    return parse_path(head), weight


path = argument(parse_path)
folder = argument(_folder)
"""The path of one to write into: no file, and not named as one."""
size = argument(parse_size)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device and --precision."""
    text = "auto, cpu, cuda, cuda:1 or mps"
    parser.add_argument("--device", type=argument(parse_device), default="auto", metavar="NAME", help=text)
    text = ", ".join(PRECISIONS)
    parser.add_argument("--precision", metavar="NAME", choices=PRECISIONS, default="auto", help=text)


def add_language_model(parser: argparse.ArgumentParser) -> None:
    """--base and --lora: a language model, and the LoRAs on it."""
    text = "the folder of the language model"
    parser.add_argument("--base", metavar="DIR", type=path, required=True, help=text)
    text = "a LoRA's folder with its weight, report_lora:0.8; any number of times"
    parser.add_argument(
        "--lora", metavar="DIR:WEIGHT", dest="loras", type=argument(weighted), action="append", default=[], help=text
    )


def add_template(parser: argparse.ArgumentParser) -> None:
    """--template and --no-think, of a language model."""
    text = "chatml, alpaca or a .jinja file (default: what the LoRA was trained with, or the model's own)"
    parser.add_argument("--template", metavar="NAME", help=text)
    text = "have it answer without thinking first, where its template knows that"
    parser.add_argument("--no-think", dest="think", action="store_false", help=text)


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """--prediction, --zero-terminal-snr and --clip-skip: what the base was trained for."""
    kinds = ("epsilon", "v", "flow")
    text = "epsilon, v or flow: what the base predicts (default: as it says)"
    parser.add_argument("--prediction", metavar="NAME", choices=kinds, help=text)
    text = "the base's noise schedule ends in pure noise"
    parser.add_argument("--zero-terminal-snr", action="store_true", default=None, help=text)
    text = default("1", "2: the text encoder's last layer but one, as anime bases want it")
    parser.add_argument("--clip-skip", metavar="N", type=number(int, 1, 12), default=1, help=text)


def require_models(models: Sequence[tuple[str, Path | None, str]]) -> None:
    """UserErrors unless each (option, path, kind of model) that is given is one, as its header tells without torch.

    Kinds with a rule: a "checkpoint" has every tensor that its kind of model calls for, but perhaps a VAE; a "LoRA" is
    one of a known family; a "model" is a file of tensors.
    """
    from lora_scripts.families import table
    from lora_scripts.formats import header
    from lora_scripts.loras import file as loras

    faults: list[UserError] = []
    for name, where, kind in models:
        if where is None:
            continue
        if fault := model_fault(where, kind=kind, folder=True):
            faults.append(UserError(f"{name}: {fault[0]}" if name.startswith("--") else fault[0], hint=fault[1]))
            continue
        try:
            if kind == "checkpoint":
                table.find(where).check(where, False)
            elif not where.is_dir():
                found = table.identify(where)
                if kind == "LoRA":
                    loras.family_of(where)
                elif kind == "model" and header.sniff(where) not in (None, header.GGUF):
                    table.refuse(found, where)
        except UserError as error:
            faults += error.errors
    raise_all(faults)


def base_of(base: Path, sink: Sink, *, with_vae: bool = False) -> Path:
    """--base on the disk, fetched first where it is a name on the hub. UserErrors where it is no whole model."""
    if fault := base_fault(base):
        raise UserError(f"--base: {fault[0]}", hint=fault[1])
    from lora_scripts.families import table
    from lora_scripts.families.download import fetch

    found = fetch(base, sink)
    table.find(found).check(found, with_vae)  # as its header tells before torch is there
    return found


def add_loras(parser: argparse.ArgumentParser, text: str = "a.safetensors:0.8; weight 1 if left out") -> None:
    """One or more FILE:WEIGHT, as `weighted_loras` gives them."""
    parser.add_argument("loras", metavar="FILE:WEIGHT", nargs="+", type=argument(weighted), help=text)


def weighted_loras(options: argparse.Namespace) -> tuple[Weighted, ...]:
    """What `add_loras` was given."""
    from lora_scripts.workshop.common import Weighted

    return tuple(Weighted(*lora) for lora in options.loras)


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, of every command."""
    text = "tell the result as JSON, and what goes on meanwhile as lines of JSON on stderr"
    parser.add_argument("--json", action="store_true", help=text)


def add_writing(
    parser: argparse.ArgumentParser, precision: str = "auto (default): as the files given; fp32, bf16, fp16"
) -> None:
    """--precision and --overwrite: of commands that write a model file."""
    parser.add_argument("--precision", metavar="NAME", choices=PRECISIONS, default="auto", help=precision)
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it is there")
