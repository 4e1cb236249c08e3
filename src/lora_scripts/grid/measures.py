"""What numbers can say of a picture beside the base's and the training pictures; the family's own parts judge.

Each is explained where it is computed: difference from the base, likeness to the training style, how much of the prompt
the model finds in its picture, and which training picture comes nearest. None of them is taste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.data.image import on_white
from lora_scripts.families.base import Batch, PictureFamily, Place
from lora_scripts.families.clip.prompts import weighted
from lora_scripts.losses.noise import STEPS, Draws, middle

TIMES = (100, 250, 400, 550, 700, 850)
"""Noise levels at which the model is asked whether the prompt helps."""
NOISES = 2
"""Draws of noise at each level, the same for every picture."""
LAYOUT = 4
"""Places along each side, of the coarse map by which training pictures are compared."""


@dataclass(frozen=True)
class Look:
    """A picture as the image encoder sees it."""

    latents: Tensor
    """[c, h, w], unit variance"""
    means: tuple[Tensor, ...]
    """of each channel, [c], from fine to coarse maps"""
    spreads: tuple[Tensor, ...]
    """standard deviation of each channel, [c]"""
    layout: Tensor
    """[c * LAYOUT^2]: what is where, coarsely"""


def as_pixels(image: Image.Image) -> Tensor:
    """RGB -> [3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(on_white(image))).permute(2, 0, 1).float() / 127.5 - 1


def look(family: PictureFamily, pixels: Tensor) -> Look:
    """Of one picture, [3, h, w] in [-1, 1]."""
    latents, maps = family.image_features(pixels[None])
    return Look(
        latents=latents[0],
        means=tuple(m[0].flatten(1).mean(1) for m in maps),
        spreads=tuple(m[0].flatten(1).std(1) for m in maps),
        layout=F.adaptive_avg_pool2d(maps[-1][0], LAYOUT).flatten(),
    )


def latent_difference(one: Look, other: Look) -> float:
    """The mean of |difference| over all latents, which have unit variance."""
    return (one.latents - other.latents).abs().mean().item()


def pixel_difference(one: Image.Image, other: Image.Image) -> float:
    """The mean of |difference| over all pixels and channels, 0 … 1 (black against white)."""
    pair = [np.asarray(on_white(image)).astype(np.float64) for image in (one, other)]
    return float(np.abs(pair[0] - pair[1]).mean() / 255)


def composition(one: Look, other: Look) -> float:
    """What is where in both, whatever its colours: the mean over the latents' channels of |correlation| over their
    places, 0 … 1. A mirror image of light and dark is the same composition."""
    mine, theirs = (x - x.mean(1, keepdim=True) for x in (one.latents.flatten(1), other.latents.flatten(1)))
    return float(F.cosine_similarity(mine, theirs, dim=1).abs().mean())


class Style:
    """The style of some pictures: mean and spread of every channel of the image encoder.

    That these statistics are what a style consists of is how style transfer works (Gatys et al. 2016; Li et al. 2017,
    "Demystifying Neural Style Transfer"; Huang & Belongie 2017, section 5); what is shown where plays no part.
    """

    def __init__(self, looks: Sequence[Look]) -> None:
        self.looks = list(looks)
        self.own = (
            sum(self._without(i).distance(one) for i, one in enumerate(looks)) / len(looks) if len(looks) > 1 else 0
        )
        """How far one of the pictures is from the others' style, on average."""

    def _without(self, i: int) -> Style:
        style = Style.__new__(Style)
        style.looks = [look for j, look in enumerate(self.looks) if j != i]
        return style

    def distance(self, one: Look) -> float:
        """The root mean square over channels, averaged over the encoder's maps, of two differences: of the means, in
        units of the style's spread, and of the spreads' logarithms."""
        total = 0.0
        for level in range(len(one.means)):
            mean = torch.stack([look.means[level] for look in self.looks]).mean(0)
            spread = torch.stack([look.spreads[level] for look in self.looks]).mean(0).clamp(min=1e-6)
            moved = (one.means[level] - mean) / spread
            widened = (one.spreads[level].clamp(min=1e-6) / spread).log()
            total += torch.cat([moved, widened]).square().mean().sqrt().item()
        return total / len(one.means)

    def likeness(self, one: Look, base: Look) -> float | None:
        """0: as far from the style as the base's picture; 1: as near as the training pictures are among themselves.
        Below 0: farther than the base. None where the base's picture is in the style already."""
        there = self.distance(base)
        return (there - self.distance(one)) / (there - self.own) if there > self.own * 1.05 else None


def nearest(one: Look, others: Sequence[Look]) -> tuple[int, float]:
    """The number of the training picture whose coarse layout is nearest, and the cosine of the two, -1 … 1, after the
    mean of all of them is taken off: 1 would be the same picture."""
    stack = torch.stack([other.layout for other in others])
    centre = stack.mean(0) if len(others) > 1 else torch.zeros_like(stack[0])
    cosines = F.cosine_similarity(stack - centre, (one.layout - centre)[None], dim=1)
    best = int(cosines.argmax())
    return best, cosines[best].item()


@torch.no_grad()
def prompt_gain(family: PictureFamily, latents: Tensor, prompt: str) -> float:
    """How much the error of denoising the picture falls when the model is told the prompt, as a share of the error
    without it: a diffusion classifier's score (Li et al. 2023, eqs. 4 and 5), with fixed noise and timesteps.

    `latents` [c, h, w]. The model judges as it stands, LoRAs and all: one that does not know the style of a picture can
    tell nothing of its contents.
    """
    generators = [torch.Generator().manual_seed(i) for i in range(len(TIMES) * NOISES)]
    count = len(generators)
    drawn = torch.stack([torch.randn(latents.shape, generator=g) for g in generators])
    draws = Draws(middle(torch.tensor(TIMES), STEPS).repeat_interleave(NOISES), drawn, torch.zeros_like(drawn))
    encoded = {"mean": latents.expand_as(drawn), "std": torch.zeros_like(drawn)}
    size = (latents.shape[2] * family.facts.vae_factor, latents.shape[1] * family.facts.vae_factor)
    errors = []
    signs = "clip" in family.facts.features  # elsewhere brackets are words like others
    whole = "".join(part for part, weight in weighted(prompt) if weight > 0) if signs else prompt
    for text in ("", whole):
        texts = {name: one.expand(count, *one.shape[1:]) for name, one in family.encode_text([text]).items()}
        places = Place(size, (0, 0), size).numbers().expand(count, -1)
        batch = Batch(encoded, [text] * count, texts, [""] * count, generators, places)
        errors.append(family.losses(batch, family.objective, draws).sum().item())
    return (errors[0] - errors[1]) / errors[0]
