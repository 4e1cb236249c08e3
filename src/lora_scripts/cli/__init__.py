"""The command line. Nothing heavy is imported before a command needs it.

argparse and not typer: `--help` has 0.3 s above a bare interpreter, and typer's imports alone take most of that.

A command is a module of this package with HELP (one line), `add(parser)` (its arguments) and `call(options)`, whose
docstring is its description; with OVERRIDES = True it takes `key=value` words, in `options.overrides`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from types import ModuleType

from lora_scripts import __version__
from lora_scripts.cli.options import Parser
from lora_scripts.errors import UserError

COMMANDS = (
    "label",
    "check",
    "plan",
    "train",
    "generate",
    "grid",
    "card",
    "combine",
    "merge",
    "unmerge",
    "extract",
    "resize",
    "inspect",
    "verify",
    "convert",
    "metadata",
    "demo",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0, 2 for a person's mistake (told on stderr), 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An old Windows code page lacks letters of people's folders; a strange letter must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _parse(sys.argv[1:] if argv is None else list(argv))
        options.command.call(options)
        return 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "lora_scripts"):
            raise
        print(f"error: the package {package} is not installed; run: python3 start.py demo", file=sys.stderr)
    except SystemExit as stop:  # argparse, after --help and --version
        return int(stop.code or 0)
    return 2


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.command is None:
        parser.print_help()
        raise UserError("no command given", hint="write one of those above")
    overridable = getattr(options.command, "OVERRIDES", False)
    for word in rest:
        if not overridable or word.startswith("-") or "=" not in word:
            raise UserError(f"unknown option {word}", hint=_mend(word, options, overridable))
    if overridable:
        # Overrides may stand anywhere; argparse itself takes only the first group of them.
        options.overrides += rest
    return options


def _mend(word: str, options: argparse.Namespace, overridable: bool) -> str:
    key = word.lstrip("-").partition("=")[0].replace("-", "_")
    if overridable and word.startswith("--") and key:
        return f"a key of the config is written without dashes, as {key}=value"
    return f"see lora-scripts {options.name} --help"


def _parser() -> Parser:
    parser = Parser(prog="lora-scripts", description="From fifty pictures to a LoRA, by editing one YAML file.")
    parser.add_argument("--version", action="version", version=f"lora-scripts {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="name")
    for name in COMMANDS:
        module: ModuleType = importlib.import_module(f"{__name__}.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.call.__doc__)
        module.add(command)
        command.set_defaults(command=module)
    return parser
