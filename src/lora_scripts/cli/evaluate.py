"""`lora-scripts evaluate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.chinese.terminal import AsItIs, told
from lora_scripts.cli.options import add_device, add_language_model, add_template, asked, default, number, path
from lora_scripts.cli.show import columns
from lora_scripts.events import Sink
from lora_scripts.units import percent

if TYPE_CHECKING:
    from lora_scripts.evaluate.command import Evaluated
    from lora_scripts.evaluate.scoring import Share
    from lora_scripts.train.evidence import Interval

HELP = "measure a language model, without and with LoRAs"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_language_model(parser)
    add(
        "--data",
        metavar="PATH",
        type=path,
        required=True,
        help="held-out records: a file, or a folder (its test split)",
    )
    add("--count", metavar="N", type=number(int, 1, 10**9), help="only the first so many records")
    add_template(parser)
    tokens = number(int, 1, 1_000_000)
    add("--max-length", metavar="N", type=tokens, default=2048, help=default("2048", "tokens of a record"))
    add("--max-tokens", metavar="N", type=tokens, default=512, help=default("512", "the longest answer"))
    add("--batch", metavar="N", type=number(int, 1, 1024), default=8, help=default("8", "records at a time"))
    add_device(parser)


def call(options: argparse.Namespace, sink: Sink) -> Evaluated:
    """Takes loss, exact answers and ROUGE-L on records that were not trained, of a base without and with LoRAs."""
    from lora_scripts.evaluate.command import evaluate

    return evaluate(**asked(options), sink=sink)


def words(result: Evaluated) -> list[str]:
    names = ["base", *(["with LoRA"] if result.lora else [])]
    figures = [one for one in (result.base, result.lora) if one is not None]
    rows = [["perplexity", *(f"{one.perplexity:.3f}" for one in figures)]]
    if result.answered:
        rows += [
            ["exact answers", *(_share(one.exact) for one in figures)],
            ["ROUGE-L", *(f"{one.rouge_l:.3f}" for one in figures)],
            ["ended by itself", *(_share(one.stopped) for one in figures)],
        ]
    lines = [f"{result.records} records, {result.answered} with an answer", *columns(["", *names], rows)]
    if result.compared is not None:
        lines.append("with the LoRA less the base, and where it lies with 95 % certainty:")
        lines.append(f"  loss {_interval(result.compared.loss)}, exact answers {_interval(result.compared.exact)}")
        lines.append(f"  ROUGE-L {_interval(result.compared.rouge_l)}")
    for shown in result.answers:
        lines += ["", AsItIs(f"{shown.place}: {shown.asked}"), _said("wanted", shown.wanted)]
        lines += [_said("base", shown.base)]
        lines += [_said("with LoRA", shown.lora)] if shown.lora is not None else []
    return lines


def _said(who: str, text: str) -> str:
    """An answer as it is, however long; who gives it is told."""
    return AsItIs(told(f"{who}: …").removesuffix("…") + text)


def _share(share: Share) -> str:
    return f"{percent(share.share, 1)} ({percent(share.low, 1)} to {percent(share.high, 1)})"


def _interval(interval: Interval) -> str:
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
