"""`lora-scripts combine`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.cli.options import add_writing, argument, file_of, number, weighted
from lora_scripts.errors import UserError
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.workshop.combine import CombineOptions
    from lora_scripts.workshop.common import Weighted

HELP = "put several LoRAs into one file"
METHODS = ("concat", "svd", "linear", "ties", "dare")


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "loras",
        metavar="FILE:WEIGHT",
        nargs="+",
        type=argument(weighted),
        help="a.safetensors:0.8; weight 1 if left out",
    )
    add("--output", metavar="FILE", type=file_of(".safetensors"), help="the file to write")
    text = "concat: the exact sum (default); svd: that sum at a smaller rank; linear, ties, dare: see docs"
    add("--method", choices=METHODS, default="concat", help=text)
    add("--rank", metavar="N", type=number(int, 1, 4096), help="svd, ties, dare: the most (default: the largest given)")
    add("--energy", metavar="X", type=number(float, 1e-6, 1), help="svd, ties, dare: the share to keep, 0.95")
    add("--density", metavar="X", type=number(float, 1e-3, 1), help="ties, dare: entries that stay (default: 0.5)")
    add("--seed", metavar="N", type=number(int, 0, 2**32 - 1), help="dare: which entries it drops (default: 1)")
    add("--report-only", action="store_true", help="only tell how they overlap; write nothing")
    add_writing(parser)


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Tells how LoRAs overlap, block by block, with weights to try; then writes them as one LoRA."""
    if options.report_only and options.output is not None:
        raise UserError("--report-only writes nothing", hint="leave out --output, or --report-only")
    if not options.report_only and options.output is None:
        raise UserError("where to?", hint="give --output both.safetensors, or --report-only")
    from lora_scripts.workshop.combine import combine_files
    from lora_scripts.workshop.common import Weighted

    combine_files(_asked(options, tuple(Weighted(*lora) for lora in options.loras)))


def _asked(options: argparse.Namespace, loras: tuple[Weighted, ...]) -> CombineOptions:
    from lora_scripts.workshop.combine import CombineOptions

    skip = ("command", "name", "loras", "report_only")
    return CombineOptions(loras=loras, **{k: v for k, v in vars(options).items() if k not in skip})
