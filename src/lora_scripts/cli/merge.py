"""`lora-scripts merge`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts.cli import files
from lora_scripts.cli.options import add_loras, add_writing, asked, path, weighted_loras
from lora_scripts.events import Sink
from lora_scripts.units import number_of, percent

if TYPE_CHECKING:
    from lora_scripts.workshop.merge import Merged

HELP = "bake LoRAs into a base model"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_loras(parser)
    add("--base", metavar="FILE", type=path, required=True, help="the checkpoint: .safetensors or diffusers folder")
    add("--output", metavar="FILE", type=path, required=True, help="the model to write, in the layout of the base")
    text = "of a language model: held-out records, on which the merged model is held against the LoRAs"
    add("--data", metavar="PATH", type=path, help=text)
    text = "of a base in one file: that of its text encoder, if LoRAs change it, too; written beside the output"
    add("--text-encoder", metavar="FILE", type=path, help=text)
    add_writing(parser, "auto (default): as the base; fp32, bf16, fp16")


def call(options: argparse.Namespace, sink: Sink) -> Merged:
    """Writes a base model with LoRAs added to its weights, tensor by tensor; everything else in it stays as it is."""
    from lora_scripts.workshop.merge import merge

    return merge(loras=weighted_loras(options), **asked(options, "loras"), sink=sink)


def words(result: Merged) -> list[str]:
    lines = [
        *files.rewritten(result),
        f"rounding: at most {result.rounding_largest:.1e} in a weight; {percent(result.rounding_lost, 2)} of what the "
        "LoRAs change",
    ]
    if (proof := result.proof) is not None:
        lines.append(
            f"proved on {proof.tokens} tokens: the largest difference of a logit is {proof.largest:.1e}, "
            f"{percent(proof.share, 2)} of what the LoRAs change; another token is likeliest in "
            f"{number_of(proof.changed_answers, 'place')}"
        )
    if result.too_coarse:
        lines.append(
            "hint: the weights are too coarse for so small a change; merge into the base in fp16, and round after"
        )
    if result.dropped:
        lines.append(f"left out of the metadata: {', '.join(result.dropped)}, which the change made wrong")
    return lines
