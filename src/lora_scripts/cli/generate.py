"""`lora-scripts generate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.cli.options import (
    add_device,
    add_prediction,
    asked,
    base_of,
    default,
    file_of,
    number,
    path,
    require_models,
    size,
    usual,
)
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Saved, Sink

if TYPE_CHECKING:
    from lora_scripts.generate.command import Generated

HELP = "draw pictures with LoRAs"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", metavar="FILE", type=path, required=True, help="the checkpoint: .safetensors or diffusers folder")
    add("--prompt", metavar="TEXT", help='what to draw: "a city at night <lora:cyberpunk_lora:0.8>"')
    text = "in place of --prompt: one prompt a line (--n --w --h --d --l --s --ref)"
    add("--from-file", metavar="FILE", type=path, help=text)
    add("--negative-prompt", metavar="TEXT", help="what to keep out of the picture (default: the base's usual, if any)")
    add("--seed", metavar="N", type=number(int, 0, 2**32 - 1), default=42, help=default("42", "the first picture's"))
    text = "Euler a, DDIM, UniPC, LCM, … (default: DPM++ 2M Karras, of flow models Euler)"
    add("--scheduler", metavar="NAME", help=text)
    add("--steps", metavar="N", type=number(int, 1, 1000), help=usual("denoising steps", 20))
    add("--cfg", metavar="X", type=number(float, 0, 100), help=usual("closeness to the prompt", 7))
    add("--size", metavar="WxH", type=size, help="pixels, 512 or 512x768 (default: the base's own, or --image's)")
    add("--image", metavar="FILE", type=path, help="a picture to begin with")
    text = "pictures to draw from, for a base that edits"
    add("--reference", metavar="R", nargs="+", type=path, default=(), help=text)
    text = default("0.75", "how much of --image is drawn anew, 0 to 1")
    add("--denoise", metavar="X", type=number(float, 0, 1), help=text)
    add("--lora-dir", metavar="DIR", type=path, default=Path("output"), help=default("output", "where LoRAs are"))
    text = default("output/generated.png, or the next free number", "a .png file")
    add("--output", metavar="FILE", type=file_of(".png"), help=text)
    add("--vae", metavar="FILE", type=path, help="a VAE in place of the checkpoint's own")
    text = "the text encoder of a base in separate files, or both"
    add("--text-encoder", metavar="T", nargs="+", type=path, default=(), help=text)
    add("--count", metavar="N", type=number(int, 1, 1000), default=1, help=default("1", "pictures, seed by seed"))
    add("--batch", metavar="N", type=number(int, 1, 64), default=1, help=default("1", "pictures drawn together"))
    add("--merged", action="store_true", help="add LoRAs to the weights: as quick as the base alone")
    add_device(parser)
    add_prediction(parser)


def call(options: argparse.Namespace, sink: Sink) -> Generated:
    """Draws pictures from a prompt, which may call any number of LoRAs as <lora:name:0.8>."""
    from lora_scripts.generate.prompt import GenerateOptions

    texts = [("--text-encoder", text, "text encoder") for text in options.text_encoder]
    require_models([("--vae", options.vae, "VAE"), *texts])
    if (options.prompt is None) == (options.from_file is None):
        raise UserError("give one of --prompt and --from-file", hint='for example --prompt "a city at night"')
    options.base = base_of(options.base, sink, with_vae=options.vae is None)
    wanted = GenerateOptions(**asked(options))
    from lora_scripts.generate.command import generate_pictures

    return generate_pictures(wanted, sink)


def words(result: Generated) -> list[str]:
    """Nothing more: each picture was told when it was written."""
    return []


def event_words(event: Event) -> str | None:
    return str(event.path) if isinstance(event, Saved) else None
