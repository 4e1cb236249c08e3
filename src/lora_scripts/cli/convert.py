"""`lora-scripts convert`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import number, path, require_models
from lora_scripts.errors import UserError
from lora_scripts.events import Sink

HELP = "write a LoRA in another program's names, or another precision"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", type=path, help="the LoRA: .safetensors, or a folder with PEFT's adapter_config.json")
    text = "kohya (A1111, ComfyUI, all others), diffusers, peft (a folder), original (published block names)"
    add("--to", choices=("kohya", "diffusers", "peft", "original"), required=True, help=text)
    add("--output", metavar="PATH", type=path, help="where to write (default: beside FILE, with the form in its name)")
    add("--dtype", choices=("fp32", "fp16", "bf16", "fp8"), help="the precision (default: as it is)")
    add("--keep-ranks", action="store_true", help="do not pad ranks and alphas that differ to one")
    add("--bake-dora", action="store_true", help="make a plain LoRA of a DoRA; needs --base")
    add("--base", metavar="FILE", type=path, help="with --bake-dora: the checkpoint that the DoRA was trained on")
    add("--rank", metavar="N", type=number(int, 1, 1024), help="with --bake-dora: the rank (default: the DoRA's)")
    add("--overwrite", action="store_true", help="replace what stands at the output")


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Writes a LoRA of Stable Diffusion 1.x in other names, and back without loss."""
    require_models([("FILE", options.file, "LoRA"), ("--base", options.base, "checkpoint")])
    if options.bake_dora and options.base is None:
        raise UserError("--bake-dora needs the base model", hint="add --base CHECKPOINT")
    if not options.bake_dora and (options.base or options.rank):
        raise UserError("--base and --rank do nothing without --bake-dora", hint="add it, or leave them out")
    from lora_scripts.workshop.convert import ConvertOptions, convert_file

    convert_file(ConvertOptions(**{k: v for k, v in vars(options).items() if k not in ("command", "name")}))
