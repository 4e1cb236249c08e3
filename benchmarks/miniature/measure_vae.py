"""What a VAE of the miniature world gives back of pictures in many styles: PSNR, and the share of the finest detail.

python -m benchmarks.miniature.measure_vae BASE.safetensors|VAE_FOLDER [--scenes N] [--styles GROUP]

PSNR in dB, of 8-bit RGB at 128 px: the mean over the pictures of each picture's own. "kept" is the doctor's measure
(lora_scripts/families/detail.py), the median over pictures that have detail.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from benchmarks import styles
from benchmarks.miniature import elsewhere
from diffusers import AutoencoderKL
from PIL import Image

from lora_scripts.demo import world
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.detail import detail_of
from lora_scripts.families.table import load_pictures
from lora_scripts.grid.measures import as_pixels

TRAINED = ("plain", *styles.TUNING, *styles.LATER, *styles.THIRD, *styles.LAST)
NEVER = (*styles.FRESH, *styles.FINAL)
"""Styles that no VAE of this world is trained on; named before the first step that saw one of the others."""
NO_SCENE = "no scene: "
HELD_OUT = 62
"""The seed of scenes to measure on; nothing is trained on it."""

Through = Callable[[torch.Tensor], Image.Image]
"""A picture, [3, 128, 128] in [-1, 1], to what the VAE gives back."""


def held_out(style: str, count: int) -> list[Image.Image]:
    """Pictures of a style of `benchmarks/styles.py`, or as in "no scene: page" of a kind of `elsewhere.UNSEEN`."""
    if style.startswith(NO_SCENE):
        kind = style.removeprefix(NO_SCENE)
        rng = random.Random(f"{kind}/{HELD_OUT}")
        return [elsewhere.UNSEEN[kind](rng) for _ in range(count)]
    return [styles.paint(scene, 128) for scene in itertools.islice(world.scenes(HELD_OUT, style), count)]


def psnr(before: Image.Image, after: Image.Image) -> float:
    """dB, of 255."""
    off = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    return float(10 * np.log10(255**2 / max(1e-3, float((off**2).mean()))))


class _Decoded:
    """A family that has encoded and decoded already."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture

    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": pixels}

    def decode_image(self, latents: torch.Tensor) -> Image.Image:
        return self.picture


def measured(through: Through, style: str, count: int) -> tuple[float, float, int]:
    """Mean PSNR, median share of detail kept, and of how many pictures that is."""
    values, kept = [], []
    for picture in held_out(style, count):
        again = through(as_pixels(picture))
        values.append(psnr(picture, again))
        detail = detail_of(_Decoded(again), as_pixels(picture))  # type: ignore[arg-type]
        kept += [detail.kept] if detail.some else []
    return fmean(values), median(kept) if kept else float("nan"), len(kept)


def through_folder(vae: AutoencoderKL) -> Through:
    @torch.no_grad()
    def through(pixels: torch.Tensor) -> Image.Image:
        y = vae.decode(vae.encode(pixels[None]).latent_dist.mean).sample[0].clamp(-1, 1)
        return Image.fromarray(((y + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())

    return through


def through_base(path: Path) -> Through:
    family = load_pictures(path, LoadOptions(torch.device("cpu"), torch.float32))
    return lambda pixels: family.decode_image(family.encode_image(pixels[None])["mean"][0])


def table(through: Through, names: tuple[str, ...], count: int) -> Iterator[str]:
    """A line for each style, as it is measured."""
    for style in names:
        db, kept, some = measured(through, style, count)
        yield f"{style:18}{db:6.1f} dB   kept {kept:5.0%} ({some})"


GROUPS = {"trained": TRAINED, "never": NEVER, "elsewhere": tuple(NO_SCENE + kind for kind in elsewhere.UNSEEN)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vae", type=Path, help="a base, or the diffusers folder of a VAE")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--styles", choices=(*GROUPS, "all"), default="all")
    args = parser.parse_args()
    folder = args.vae.is_dir()
    through = through_folder(AutoencoderKL.from_pretrained(args.vae)) if folder else through_base(args.vae)
    for group in GROUPS if args.styles == "all" else (args.styles,):
        print(f"{group}: {args.scenes} held-out pictures each")
        for line in table(through, GROUPS[group], args.scenes):
            print(line, flush=True)
