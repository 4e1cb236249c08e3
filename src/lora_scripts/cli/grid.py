"""`lora-scripts grid`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.cli.options import (
    add_device,
    add_prediction,
    argument,
    default,
    folder,
    number,
    path,
    require_models,
    size,
)
from lora_scripts.events import Sink

if TYPE_CHECKING:
    from lora_scripts.grid.command import Grid

HELP = "compare LoRAs, checkpoints and strengths in one picture and one page"


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("must be a number")
    return value


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", metavar="FILE", type=path, help="the checkpoint to draw with (default: that of the run)")
    add("--loras", metavar="FILE", nargs="+", type=path, default=(), help="LoRA files")
    text = "checkpoints of a run: its folder, files, or a pattern with *"
    add("--checkpoints", metavar="RUN", nargs="+", default=(), help=text)
    strengths = (0.0, 0.4, 0.8, 1.0)
    text = default("0 0.4 0.8 1", "how strongly the LoRA is on")
    add("--strengths", metavar="X", nargs="+", type=argument(_finite), default=strengths, help=text)
    add(
        "--prompts",
        metavar="FILE",
        type=path,
        help="one prompt a line (default: the run's, or two of its captions)",
    )
    add("--seeds", metavar="N", nargs="+", type=number(int, 0, 2**32 - 1), default=(42,), help=default("42", "noise"))
    text = "closeness to the prompt (default: the run's, or the base's usual, such as 7)"
    add("--cfgs", metavar="X", nargs="+", type=number(float, 0, 100), default=(), help=text)
    text = "what to keep out of the pictures (default: the run's, or the base's usual, if any)"
    add("--negative-prompt", metavar="TEXT", help=text)
    text = "denoising steps (default: the run's, or the base's usual, such as 20)"
    add("--steps", metavar="N", type=number(int, 1, 1000), help=text)
    add("--size", metavar="WxH", type=size, help="pixels, 512 or 512x768 (default: the run's, or the base's own)")
    add("--scheduler", metavar="NAME", help="as for generate (default: DPM++ 2M Karras, of flow models Euler)")
    add("--vae", metavar="FILE", type=path, help="a VAE in place of the checkpoint's own")
    text = "the text encoder of a base in separate files, or both"
    add("--text-encoder", metavar="T", nargs="+", type=path, default=(), help=text)
    add("--data", metavar="DIR", type=path, help="training pictures to measure with (default: the run's)")
    add("--no-measures", dest="measures", action="store_false", help="draw only")
    add("--output", metavar="DIR", type=folder, default=Path("output/grid"), help=default("output/grid"))
    add_device(parser)
    add_prediction(parser)


def call(options: argparse.Namespace, sink: Sink) -> Grid:
    """Draws up to three of prompt, LoRA, checkpoint, seed, cfg and strength against each other, each picture once; a
    grid that was stopped goes on where it was."""
    from lora_scripts.grid.sources import GridOptions

    models = [("--base", options.base, "checkpoint"), ("--vae", options.vae, "VAE")]
    models += [("--loras", lora, "LoRA") for lora in options.loras]
    require_models([*models, *(("--text-encoder", text, "text encoder") for text in options.text_encoder)])
    values = {key: value for key, value in vars(options).items() if key not in ("command", "name", "json")}
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    asked = GridOptions(**values)
    from lora_scripts.grid.command import draw_grid

    return draw_grid(asked, sink)


def words(grid: Grid) -> list[str]:
    """Where the grid is."""
    return [f"the picture: {grid.sheet}", f"the page: {grid.page}"]
