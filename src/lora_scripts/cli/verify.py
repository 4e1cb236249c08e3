"""`lora-scripts verify`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.cli.options import path, require_models
from lora_scripts.cli.show import as_json
from lora_scripts.errors import UserError
from lora_scripts.events import Sink
from lora_scripts.loras.consumers import CONSUMERS

if TYPE_CHECKING:
    from lora_scripts.loras.consumers.compare import Verdict

HELP = "prove that a LoRA does in every program what was trained"


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


def call(options: argparse.Namespace, sink: Sink) -> Verified:
    """Asks of each program: does it account for every key of the file, and is the change that it makes the right one?

    diffusers and PEFT are run; the others are judged by our own statement of their rules.
    """
    models = [("FILE", options.file, "LoRA"), ("--reference", options.reference, "LoRA")]
    require_models([*models, ("--base", options.base, "checkpoint")])
    from lora_scripts.loras.verify import verify

    return Verified(options.file, tuple(verify(options.file, options.base, options.reference, options.consumers)))


@dataclass(frozen=True)
class Verified:
    """What each program does with the file."""

    file: Path
    verdicts: tuple[Verdict, ...]


def plain(result: Verified) -> object:
    """For JSON: whether a program is right stands beside the rest."""
    rows = []
    for verdict in result.verdicts:
        fields = as_json(verdict)
        assert isinstance(fields, dict)
        rows.append({"ok": verdict.ok, **fields})
    return {"file": result.file, "ok": all(verdict.ok for verdict in result.verdicts), "verdicts": rows}


def words(result: Verified) -> list[str]:
    return [str(verdict) for verdict in result.verdicts]


def faults(result: Verified) -> list[UserError]:
    wrong = ", ".join(verdict.consumer for verdict in result.verdicts if not verdict.ok)
    if not wrong:
        return []
    return [UserError(f"not as trained in {wrong}", file=result.file, hint="the first key is named above")]
