"""`lora-scripts tune`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.chinese.terminal import AsItIs
from lora_scripts.cli.options import argument, default, number
from lora_scripts.cli.show import columns
from lora_scripts.cli.train import add_config
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.tune.command import Tuned
    from lora_scripts.tune.search import Standing

HELP = "find a learning rate, or another key's best value, by short runs"
OVERRIDES = True


def add(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add = parser.add_argument
    text = "another key, and what to try: lora_rank=8,16,32"
    add("--try", dest="tried", metavar="KEY=A,B,…", type=argument(_tried), help=text)
    text = default("0.25", "each trial has so much of the config's epochs; 1: all")
    add("--share", metavar="SHARE", type=number(float, 0.01, 1), default=0.25, help=text)
    text = default("6", "at most so many trials, where no values are named")
    add("--most", metavar="N", type=number(int, 2, 20), default=6, help=text)


def _tried(text: str) -> tuple[str, tuple[str, ...]]:
    key, equals, values = text.partition("=")
    each = tuple(dict.fromkeys(value.strip() for value in values.replace("，", ",").split(",") if value.strip()))
    if not (key and equals) or len(each) < 2:
        raise ValueError("must be KEY=A,B,… with two values at least")
    return key.strip(), each


def call(options: argparse.Namespace, sink: Sink) -> Tuned:
    """Trains a part of the run with one value after the other, and tells which has the lowest held-out loss: learning
    rates, each twice or half another, or what --try names. What is finished is not trained again."""
    from lora_scripts.tune.command import RATE, TuneOptions, tune

    key, values = options.tried or (RATE, ())
    return tune(TuneOptions(options.config, options.overrides, key, values, options.share, options.most), sink)


def words(result: Tuned) -> list[str]:
    """A table, the best first, and what to write."""
    head = [AsItIs(result.key), "held-out loss", "than the base", "than the best"]
    lines = columns(head, [_row(one) for one in result.standings])
    best = result.standings[0].trial
    alike = [one.trial.value for one in result.standings[1:] if one.alike]
    if alike:
        told = f"{' and '.join(alike)} cannot be told from {best.value} by {result.held_out} held-out samples"
        lines.append(told)
    if result.open:
        lines.append("the best has no worse one on either side yet: a higher --most goes on from here")
    if best.best and best.base and best.best.loss >= best.base.loss:
        return [*lines, "none is better than the base model: more --share, or other pictures and captions, come first"]
    return [*lines, f"in {result.epochs} of {result.of} epochs the lowest: write {result.key}: {best.value}"]


def _row(one: Standing) -> list[str]:
    from lora_scripts.train.evidence import change

    base, best, value = one.trial.base, one.trial.best, AsItIs(one.trial.value)
    if best is None or base is None or one.higher is None:
        return [value, "no number", "", ""]
    more = one.higher
    than = f"+{more.mean:.4f} ({more.low:+.4f} to {more.high:+.4f})" if more.mean else ""
    return [value, f"{best.loss:.4f}", change(base.loss - best.loss, base.loss), than]
