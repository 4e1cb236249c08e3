"""`lora-scripts train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_scripts.errors import UserError
from lora_scripts.events import Event, Saved, Sink
from lora_scripts.report.usage import chat_command, tag

if TYPE_CHECKING:
    from lora_scripts.run.story import TrainResult
    from lora_scripts.run.texts.story import TextTrainResult

HELP = "train a LoRA as a config says"
OVERRIDES = True


def add(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on exactly where the run in output_dir stopped")
    parser.add_argument("--sure", action="store_true", help="train even with a learning rate that destroys a LoRA")


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config and the keys laid over it."""
    text = "the YAML file, for example configs/cyberpunk.yaml"
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help=text)
    text = "keys laid over the config: epochs=3 flip=true"
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)


def call(options: argparse.Namespace, sink: Sink) -> TrainResult | TextTrainResult:
    """Trains a LoRA; relative paths in the config count from the folder you start in."""
    from lora_scripts.config.keys.training import DESTROYS
    from lora_scripts.run.configs import load_config

    config = load_config(options.config, options.overrides, sink, captions=True)
    rate, optimizer = config.learning_rate, config.optimizer
    if rate >= DESTROYS and optimizer != "prodigy" and not options.sure:
        text = f"learning_rate {rate:g} destroys a LoRA with {optimizer}: it becomes worse than the base"
        raise UserError(text, file=options.config, hint="write 2e-4; or add --sure if you mean it")
    from lora_scripts import run

    check_with = ["--config", str(options.config), *options.overrides]
    return run.train(config, resume=options.resume, check_with=check_with, sink=sink)


def words(result: TrainResult | TextTrainResult) -> list[str]:
    """Where everything lies."""
    warning = [f"warning: {result.warning}"] if result.warning else []
    if not hasattr(result, "trigger"):
        talk = f"talk to it: {chat_command(result.base, result.lora)}"
        return [f"the LoRA: {result.lora}", talk, f"the report: {result.report}", *warning]
    drawn = cast("TrainResult", result)
    return [
        f"the LoRA: {drawn.lora}  (prompt: {tag(drawn.name, drawn.strength, drawn.trigger)})",
        *(f"the word {word}: {file}  (into the WebUI's embeddings folder)" for word, file in drawn.words.items()),
        f"the report: {result.report}",
        *([f"look at these pictures: {drawn.look_at}"] if drawn.look_at else []),
        *warning,
    ]


def event_words(event: Event) -> str | None:
    """The files of a run lie where the table says: single ones are not told."""
    return "" if isinstance(event, Saved) else None
