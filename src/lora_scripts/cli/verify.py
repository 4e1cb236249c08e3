"""`lora-scripts verify`."""

from __future__ import annotations

import argparse

from lora_scripts.cli.options import path, require_models
from lora_scripts.errors import UserError
from lora_scripts.events import Sink

HELP = "prove that a LoRA does in every program what was trained"
CONSUMERS = ("diffusers", "PEFT", "A1111", "ComfyUI", "InvokeAI", "additional-networks", "kohya")


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", type=path, help="the LoRA: .safetensors, or a folder with PEFT's adapter_config.json")
    add("--base", metavar="FILE", type=path, required=True, help="the checkpoint, or diffusers folder, that it is for")
    text = "a LoRA that is known to be right (default: the file itself, by the published formula)"
    add("--reference", metavar="FILE", type=path, help=text)
    text = f"only these: {', '.join(CONSUMERS)} (default: all)"
    known = {name.lower(): name for name in CONSUMERS}
    add(
        "--in", dest="consumers", metavar="NAME", nargs="+", type=lambda t: known.get(t.lower(), t),
        choices=CONSUMERS, default=CONSUMERS, help=text,
    )  # fmt: skip


def call(options: argparse.Namespace, sink: Sink) -> None:
    """Asks of each program: does it account for every key of the file, and is the change that it makes the right one?

    diffusers and PEFT are run; the others are judged by our own statement of their rules.
    """
    models = [("FILE", options.file, "LoRA"), ("--reference", options.reference, "LoRA")]
    require_models([*models, ("--base", options.base, "checkpoint")])
    from lora_scripts.loras.verify import verify

    verdicts = verify(options.file, options.base, options.reference, options.consumers)
    for verdict in verdicts:
        print(verdict)
    failed = [verdict.consumer for verdict in verdicts if not verdict.ok]
    if failed:
        raise UserError(
            f"not as trained in {', '.join(failed)}", file=options.file, hint="the first key is named above"
        )
