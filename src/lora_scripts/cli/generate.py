"""`lora-scripts generate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_scripts.cli.options import add_device, default, file_of, number, path, require_models, size

HELP = "draw pictures with LoRAs"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", metavar="FILE", type=path, required=True, help="the checkpoint: .safetensors or diffusers folder")
    add("--prompt", metavar="TEXT", required=True, help='what to draw: "a city at night <lora:cyberpunk_lora:0.8>"')
    add("--negative-prompt", metavar="TEXT", default="", help="what to keep out of the picture")
    add("--seed", metavar="N", type=number(int, 0, 2**32 - 1), default=42, help=default("42", "the first picture's"))
    add("--steps", metavar="N", type=number(int, 1, 1000), default=20, help=default("20", "denoising steps"))
    add("--cfg", metavar="X", type=number(float, 0, 100), default=7.0, help=default("7", "closeness to the prompt"))
    add("--size", metavar="WxH", type=size, help="pixels, 512 or 512x768 (default: the base's own)")
    add("--lora-dir", metavar="DIR", type=path, default=Path("output"), help=default("output", "where LoRAs are"))
    image = Path("output/generated.png")
    add("--output", metavar="FILE", type=file_of(".png"), default=image, help=default("%(default)s", "a .png file"))
    add("--vae", metavar="FILE", type=path, help="a VAE in place of the checkpoint's own")
    add("--count", metavar="N", type=number(int, 1, 1000), default=1, help=default("1", "pictures, seed by seed"))
    add_device(parser)
    add(
        "--prediction", choices=("epsilon", "v"), default="epsilon", help="what the base predicts: epsilon (default), v"
    )


def call(options: argparse.Namespace) -> None:
    """Draws pictures from a prompt, which may call any number of LoRAs as <lora:name:0.8>."""
    from lora_scripts.generate.prompt import GenerateOptions

    require_models([("--base", options.base, "checkpoint"), ("--vae", options.vae, "VAE")])
    values = {key: value for key, value in vars(options).items() if key not in ("command", "name")}
    asked = GenerateOptions(**values)
    from lora_scripts import run

    run.generate(asked)
