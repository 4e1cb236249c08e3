"""`lora-scripts convert`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.cli.options import asked, number, path, require_models
from lora_scripts.dtypes import WORDS
from lora_scripts.errors import UserError
from lora_scripts.events import Sink
from lora_scripts.units import percent

if TYPE_CHECKING:
    from lora_scripts.workshop.convert import Converted, Sizes

HELP = "write a LoRA in another program's names, or another precision"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", type=path, help="the LoRA: .safetensors, or a folder with PEFT's adapter_config.json")
    text = "kohya (A1111, ComfyUI, all others), diffusers, peft (a folder), original (published block names)"
    add("--to", metavar="FORM", choices=("kohya", "diffusers", "peft", "original"), required=True, help=text)
    add("--output", metavar="PATH", type=path, help="where to write (default: beside FILE, with the form in its name)")
    text = "the precision: fp32, fp16, bf16 or fp8 (default: as it is)"
    add("--dtype", metavar="NAME", choices=tuple(WORDS), help=text)
    add("--keep-ranks", action="store_true", help="do not pad ranks and alphas that differ to one")
    add("--bake-dora", action="store_true", help="make a plain LoRA of a DoRA; needs --base")
    add("--base", metavar="FILE", type=path, help="with --bake-dora: the checkpoint that the DoRA was trained on")
    add("--rank", metavar="N", type=number(int, 1, 1024), help="with --bake-dora: the rank (default: the DoRA's)")
    add("--overwrite", action="store_true", help="replace a file that stands at the output; a folder never is")


def call(options: argparse.Namespace, sink: Sink) -> Converted:
    """Writes a LoRA in the names of other programs, and back without loss."""
    require_models([("FILE", options.file, "LoRA"), ("--base", options.base, "checkpoint")])
    if options.bake_dora and options.base is None:
        raise UserError("--bake-dora needs the base model", hint="add --base CHECKPOINT")
    if not options.bake_dora and (options.base or options.rank):
        raise UserError("--base and --rank do nothing without --bake-dora", hint="add it, or leave them out")
    from lora_scripts.workshop.convert import convert

    return convert(**asked(options), sink=sink)


def words(result: Converted) -> list[str]:
    lines = [f"{result.file}: {result.modules} modules, {result.naming} names, {_sizes(result.sizes)}"]
    if baked := result.baked:
        lines.append(
            f"DoRA baked: {baked.modules} modules at rank {baked.rank} keep {percent(baked.mean_kept, 1)} of their "
            f"change's energy on average, {percent(baked.least_kept, 1)} at least ({baked.worst_module})"
        )
    if result.padded is not None:
        lines.append(f"ranks and alphas differ: all padded to {_sizes(result.padded)}")
    if result.dtype is not None:
        lines.append(f"{result.dtype}: {result.loss}")
    if result.folding == "rounds the smallest":
        lines.append("folding alpha / rank into the weights rounds the smallest of them: --dtype fp32 keeps every bit")
    elif result.folding == "rounds all":
        lines.append("alpha / rank is no power of two: folding it into the weights rounds their last bit")
    if result.read_by:
        lines.append(f"every key is read by {', '.join(result.read_by)}")
    elif result.to == "diffusers":
        lines.append("these names are read by diffusers")
    elif not result.parts:
        lines.append("no program whose rules are stated here reads these names")
    for part in result.parts:
        lines.append(f"load it with PeftModel.from_pretrained(pipeline.{part}, '{result.output / part}')")
    return [*lines, f"written: {result.output}"]


def _sizes(sizes: Sizes) -> str:
    def few(values: Sequence[float]) -> str:
        return ", ".join(f"{value:g}" for value in values[:4])

    return f"rank {few(sizes.ranks)}, alpha {few(sizes.alphas)}"
