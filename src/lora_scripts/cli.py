"""The command line: train, generate, demo. Nothing heavy is imported before a command needs it.

argparse and not typer: `--help` has 0.3 s above a bare interpreter, and typer's imports alone take most of that.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lora_scripts import __version__
from lora_scripts.config.values import DEVICE, model_fault, parse_path, parse_size
from lora_scripts.errors import UserError, raise_all

T = TypeVar("T")
N = TypeVar("N", int, float)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0, 2 for a person's mistake (told on stderr), 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An old Windows code page lacks letters of people's folders; a strange letter must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _parse(sys.argv[1:] if argv is None else list(argv))
        options.command(options)
        return 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __package__):
            raise
        print(f"error: the package {package} is not installed; run: python3 start.py demo", file=sys.stderr)
    except SystemExit as stop:  # argparse, after --help and --version
        return int(stop.code or 0)
    return 2


class _Parser(argparse.ArgumentParser):
    """argparse, but a usage error is a UserError of one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(message, hint=f"see {self.prog} --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.command is None:
        parser.print_help()
        raise UserError("no command given", hint="write train, generate or demo")
    for word in rest:
        if options.command is not _train or word.startswith("-") or "=" not in word:
            raise UserError(f"unknown option {word}", hint=_mend(word, options))
    if options.command is _train:
        # Overrides may stand anywhere; argparse itself takes only the first group of them.
        options.overrides += rest
    return options


def _mend(word: str, options: argparse.Namespace) -> str:
    key = word.lstrip("-").partition("=")[0].replace("-", "_")
    if options.command is _train and word.startswith("--") and key:
        return f"a key of the config is written without dashes, as {key}=value"
    return f"see lora-scripts {options.name} --help"


def _parser() -> _Parser:
    parser = _Parser(prog="lora-scripts", description="From fifty pictures to a LoRA, by editing one YAML file.")
    parser.add_argument("--version", action="version", version=f"lora-scripts {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="name")
    _add_train(commands.add_parser("train", help="train a LoRA as a config says", description=_train.__doc__))
    _add_generate(commands.add_parser("generate", help="draw pictures with LoRAs", description=_generate.__doc__))
    demo = commands.add_parser("demo", help="train a LoRA on the bundled miniature world", description=_demo.__doc__)
    demo.add_argument("--output", metavar="DIR", type=_path, default=Path("output/demo"), help=_default("%(default)s"))
    demo.set_defaults(command=_demo)
    return parser


def _default(value: str, text: str = "the folder to write to") -> str:
    return f"{text} (default: {value})"


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="FILE", type=Path, required=True, help="the YAML file, for example configs/cyberpunk.yaml")
    add("--resume", action="store_true", help="go on exactly where the run in output_dir stopped")
    add("overrides", metavar="key=value", nargs="*", default=[], help="keys laid over the config: epochs=3 flip=true")
    parser.set_defaults(command=_train)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", metavar="FILE", type=_path, required=True, help="the checkpoint: .safetensors or diffusers folder")
    add("--prompt", metavar="TEXT", required=True, help='what to draw: "a city at night <lora:cyberpunk_lora:0.8>"')
    add("--negative-prompt", metavar="TEXT", default="", help="what to keep out of the picture")
    add("--seed", metavar="N", type=_number(int, 0, 2**32 - 1), default=42, help=_default("42", "the first picture's"))
    add("--steps", metavar="N", type=_number(int, 1, 1000), default=20, help=_default("20", "denoising steps"))
    add("--cfg", metavar="X", type=_number(float, 0, 100), default=7.0, help=_default("7", "closeness to the prompt"))
    add("--size", metavar="WxH", type=_argument(parse_size), help="pixels, 512 or 512x768 (default: the base's own)")
    add("--lora-dir", metavar="DIR", type=_path, default=Path("output"), help=_default("output", "where LoRAs are"))
    image = Path("output/generated.png")
    add("--output", metavar="FILE", type=_argument(_png), default=image, help=_default("%(default)s", "a .png file"))
    add("--vae", metavar="FILE", type=_path, help="a VAE in place of the checkpoint's own")
    add("--count", metavar="N", type=_number(int, 1, 1000), default=1, help=_default("1", "pictures, seed by seed"))
    add("--device", type=_argument(_device), default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps")
    add(
        "--prediction", choices=("epsilon", "v"), default="epsilon", help="what the base predicts: epsilon (default), v"
    )
    precisions = ("auto", "fp32", "bf16", "fp16")
    add("--precision", metavar="NAME", choices=precisions, default="auto", help=", ".join(precisions))
    parser.set_defaults(command=_generate)


def _argument(convert: Callable[[str], T]) -> Callable[[str], T]:
    """`convert` for argparse: its ValueError becomes the message."""

    def checked(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None

    return checked


def _number(kind: type[N], low: int, high: int) -> Callable[[str], N]:
    """A number from `low` to `high`."""

    def convert(text: str) -> N:
        try:
            number = kind(text)
        except ValueError:
            raise ValueError("must be a whole number" if kind is int else "must be a number") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return _argument(convert)


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise ValueError("must be a .png file")
    return parse_path(text)


def _device(text: str) -> str:
    if not DEVICE.fullmatch(text):
        raise ValueError("must be auto, cpu, cuda, mps, or one card such as cuda:1")
    return text


_path = _argument(parse_path)


def _train(options: argparse.Namespace) -> None:
    """Trains a LoRA; relative paths in the config count from the folder you start in."""
    from lora_scripts.config.load import load_config

    config = load_config(options.config, options.overrides)
    from lora_scripts import run

    run.train(config, resume=options.resume)


def _generate(options: argparse.Namespace) -> None:
    """Draws pictures from a prompt, which may call any number of LoRAs as <lora:name:0.8>."""
    from lora_scripts.generate.prompt import GenerateOptions

    models = [("--base", options.base, "checkpoint"), ("--vae", options.vae, "VAE")]
    faults = []
    for name, path, kind in models:
        if path is not None and (fault := model_fault(path, kind=kind, folder=True)):
            faults.append(UserError(f"{name}: {fault[0]}", hint=fault[1]))
    raise_all(faults)
    values = {key: value for key, value in vars(options).items() if key not in ("command", "name")}
    asked = GenerateOptions(**values)
    from lora_scripts import run

    run.generate(asked)


def _demo(options: argparse.Namespace) -> None:
    """Trains a LoRA on the bundled miniature world: no downloads, no GPU, about three minutes."""
    from lora_scripts.demo.main import run_demo

    run_demo(options.output)
