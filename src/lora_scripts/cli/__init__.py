"""The command line. Nothing heavy is imported before a command needs it.

argparse and not typer: `--help` has 0.3 s above a bare interpreter, and typer's imports alone take most of that.

A command is a module of this package:

- `HELP`: one line, beside two examples in `examples`; `OVERRIDES = True` if it takes `key=value` words, in
  `options.overrides`;
- `add(parser)`: its arguments, without --json, which every command gets here;
- `call(options, sink) -> result`: hands plain arguments and the sink of events to a function of a room, and gives its
  frozen result; the docstring is the command's description;
- `words(result)`: the lines that a person reads of it; what --json prints is `show.as_json(result)`, or of
  `plain(result)` where a module has that;
- `faults(result)`, where a result can be a failure: errors that are told after it, with exit code 2;
- `event_words(event)`, where a command has words of its own for an event: see `show.People`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from lora_scripts import __version__
from lora_scripts.chinese.terminal import told
from lora_scripts.cli import show
from lora_scripts.cli.examples import examples_of
from lora_scripts.cli.options import Parser, add_json, examples_text, options_of
from lora_scripts.cli.printing import say, supply_streams
from lora_scripts.config.values import did_you_mean
from lora_scripts.errors import Terminated, UserError, raise_all
from lora_scripts.units import HALF

COMMANDS = (
    "new",
    "label",
    "check",
    "plan",
    "tune",
    "train",
    "generate",
    "chat",
    "evaluate",
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
    "completion",
)


FIRST = """\
first, with your pictures in data/mine:
  lora-scripts label --input data/mine --trigger myword      captions, which you then mend
  lora-scripts new mine --data data/mine                     a config; it says which base models are here
  lora-scripts train --config configs/mine.yaml              the LoRA, and a report
or see how it all works in a few minutes: lora-scripts demo"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0, 2 for a person's mistake (told on stderr), 130 when interrupted, 143 when
    the system asked it to end (SIGTERM)."""
    supply_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An old Windows code page lacks letters of people's folders; a strange letter must not end a run.
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else list(argv)
    json_lines = "--json" in words
    try:
        _run(_parse(words))
        return 0
    except UserError as error:
        show.say_errors(error, json_lines=json_lines)
    except KeyboardInterrupt as stop:
        text = str(stop) or "stopped"  # a run says in it where it stopped, and how it goes on
        say(show.dumps({"event": "stopped", "text": text}) if json_lines else told(text), error=True)
        return 143 if isinstance(stop, Terminated) else 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "lora_scripts"):
            raise
        missing = UserError(f"the package {package} is not installed", hint="run: python3 start.py setup")
        show.say_errors(missing, json_lines=json_lines)
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        lacking = UserError("memory ran out", hint="close what else needs memory, or ask for less at once")
        show.say_errors(lacking, json_lines=json_lines)
    except SystemExit as stop:  # argparse, after --help and --version
        return int(stop.code or 0)
    except OSError:
        if not _no_temporary_files():
            raise
        hint = "free some space on the system's disk, or set TMPDIR to a folder elsewhere"
        lacking = UserError("no folder for temporary files can be written to", hint=hint)
        show.say_errors(lacking, json_lines=json_lines)
    finally:
        _flush()
    return 2


def _run(options: argparse.Namespace) -> None:
    """Runs the command, and shows its events and its result. UserErrors for what is wrong with that."""
    command = options.command
    as_document = bool(getattr(options, "json", False))
    usual = show.People(getattr(command, "event_words", lambda event: None))
    with show.JsonLines() if as_document else usual as sink:
        result = command.call(options, sink)
    plain = getattr(command, "plain", lambda result: result)
    show.say_result(plain(result), () if as_document else command.words(result), as_document=as_document)
    if hasattr(command, "faults"):
        raise_all(command.faults(result))


def _ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out, which may be anywhere. torch has words of its own for that."""
    from lora_scripts.compute.meter import ran_out

    return isinstance(error, MemoryError) or ("torch" in sys.modules and ran_out(error))


def _no_temporary_files() -> bool:
    """Whether the system has no folder for them: torch wants one already while it is imported."""
    import tempfile

    try:
        tempfile.gettempdir()
        return False
    except FileNotFoundError:
        return True


def _flush() -> None:
    """What waits in the buffer, as argparse's help does, goes out here, where a closed pipe is no error, and not when
    Python ends."""
    say("", end="")


def _parse(words: list[str]) -> argparse.Namespace:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        near = did_you_mean(words[0], COMMANDS)
        hint = f"did you mean {near}?" if near else "lora-scripts --help names them all"
        raise UserError(f"there is no command {words[0]}", hint=hint)
    raise_all(_not_typed(words))
    parser = _parser()
    if words and words[0] in COMMANDS:
        raise_all(_unknown_options(words, parser.commands[words[0]]))
    options, rest = parser.parse_known_args(words)
    if options.command is None:
        parser.print_help()
        raise UserError("no command given", hint="begin with the lines above")
    overridable = getattr(options.command, "OVERRIDES", False)
    for word in rest:
        if not overridable or word.startswith("-") or "=" not in word:
            raise UserError(f"unknown option {word}", hint=f"see {parser.commands[options.name].prog} --help")
    if overridable:
        # Overrides may stand anywhere; argparse itself takes only the first group of them.
        options.overrides += rest
    return options


_QUOTING = re.compile("“[^”]*”.|‘[^’]*’.")
"""A text that goes on behind the quotation with which it begins."""


def _not_typed(words: Sequence[str]) -> list[UserError]:
    """The first fault of quotes or dashes that a text program or an input method has put for plain ones, or of bytes
    that are not UTF-8, which no page and no JSON can hold. A word with a blank in it was quoted well, and Chinese that
    begins with a quotation has none: “结节”是什么？"""
    faults = []
    for word in words:
        if word[:1] in ("“", "”", "‘", "’") and " " not in word and not _QUOTING.match(word):
            text = f"{word} begins with a Chinese or curly quote, which the shell takes for a letter"
            meant = word.strip("“”‘’") + ("" if word[-1] in "”’" else " …")
            faults.append(UserError(text, hint=f'write "{meant}", in plain quotes'))
        elif word[:1] in ("—", "–") and " " not in word:
            faults.append(UserError(f"{word} begins with a long dash", hint=f"write --{word.lstrip('—–-')}"))
        elif HALF.search(word):
            there = any(map(os.path.lexists, (word, word.partition("=")[2])))
            hint = "rename it" if there else "write it in a terminal that is set to UTF-8"
            shown = HALF.sub("\ufffd", word)
            faults.append(UserError(f"{shown} is not in UTF-8", hint=hint))
    return faults[:1]


def _unknown_options(words: Sequence[str], parser: argparse.ArgumentParser) -> list[UserError]:
    """A fault for each option that the command does not have; argparse would first ask for those that are missing."""
    known = options_of(parser)
    faults = []
    for word in words[1 : words.index("--") if "--" in words else None]:
        option = word.partition("=")[0]
        if word.startswith("--") and " " not in word and option not in known:
            near = did_you_mean(option, known)
            hint = f"did you mean {near}?" if near else f"see {parser.prog} --help"
            if near is None and getattr(parser.get_default("command"), "OVERRIDES", False):
                key = option.lstrip("-").replace("-", "_")
                hint = f"a key of the config is written without dashes, as {key}=value"
            faults.append(UserError(f"unknown option {word}", hint=hint))
    return faults


def parsers() -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each command."""
    return _parser().commands


def _parser() -> Parser:
    parser = Parser(
        prog="lora-scripts",
        description="From fifty pictures to a LoRA, by editing one YAML file.",
        epilog=FIRST,
    )
    parser.add_argument("--version", action="version", version=f"lora-scripts {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="name")
    for name in COMMANDS:
        module: ModuleType = importlib.import_module(f"{__name__}.{name}")
        epilog = examples_text(examples_of(name))
        command = commands.add_parser(name, help=module.HELP, description=module.call.__doc__, epilog=epilog)
        module.add(command)
        add_json(command)
        command.set_defaults(command=module)
    parser.commands = commands.choices
    return parser
