"""`lora-scripts plan`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import number
from lora_scripts.cli.train import add_config
from lora_scripts.events import Sink

HELP = "say what a training will do and take, without starting it"
OVERRIDES = True


def add(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    text = "to fit into so much memory, as if the card or machine had it (1 GB is 2^30 bytes)"
    parser.add_argument("--memory", metavar="GB", type=number(float, 0.01, 100_000), help=text)
    parser.add_argument("--json", action="store_true", help="tell it as JSON: seconds and bytes")


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Says what a training will do and take: steps, buckets, time, memory, disk, by rehearsing its largest batch, one
    preview and one save; and what to change if it does not fit. Writes nothing."""
    from lora_scripts.config.load import load_config

    config = load_config(options.config, options.overrides)
    from lora_scripts.plan.command import PlanOptions, plan

    plan(PlanOptions(config, options.config, options.overrides, options.memory, options.json))
