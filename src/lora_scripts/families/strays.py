"""Which pictures of a set are unlike the others, in style or in what they show: by what a base makes of them.

Three descriptions of each picture are compared with those of the others: what the VAE's encoder sees (mean and spread
of each channel of its maps, the usual description of a style), how strong what the base misses of the picture is with
its own caption (by noise level, channel and coarseness), and which way it goes on average. Pictures that the base knows
vary in the first, by day and night, and not in the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.families.base import PictureFamily
from lora_scripts.families.exchanged import at_a_time, missed_with

LEVELS = (0.1, 0.3, 0.5, 0.65)
"""Noise levels, as shares of the range."""
LEAST = 12
"""Pictures: among fewer none is unlike the others."""
LIMIT = 2.75
"""Deviations, on average over the three descriptions, by which a stray is farther from the others."""
SHARE = 0.3
"""Of a set: more strays are none."""
CLIP = 10.0
"""Deviations of one number that count at most."""
SPREAD = 0.2
"""The least deviation of the logarithm of a distance that counts as one."""
BANDS = 3
"""Of coarseness, each half as fine as the one before."""


def steps(family: PictureFamily, pictures: Sequence[Tensor]) -> int:
    """How often `described` calls its `step`."""
    many = at_a_time(family.encode_image(pictures[0][None])["mean"])
    return len(LEVELS) * -(-len(pictures) // many)


def described(
    family: PictureFamily, pictures: Sequence[Tensor], captions: Sequence[str], step: Callable[[], bool]
) -> list[Tensor] | None:
    """The three descriptions of n pictures, [3, h, w] in [-1, 1] and all of one size: each [n, numbers] float32 on the
    CPU. `step` is called after each level and batch; None if it says no."""
    with torch.no_grad():
        seen = torch.stack([_seen(family, pixels) for pixels in pictures])
        latents = torch.cat([family.encode_image(pixels[None])["mean"] for pixels in pictures])
        texts, many, size = (
            family.encode_text(captions),
            at_a_time(latents),
            (pictures[0].shape[2], pictures[0].shape[1]),
        )
        strengths, ways = [], []
        for number, u in enumerate(LEVELS):
            noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(number))
            parts = []
            for first in range(0, len(pictures), many):
                some = slice(first, first + many)
                told = {name: values[some] for name, values in texts.items()}
                parts.append(missed_with(family, latents[some], captions[some], told, noise, u, size).cpu())
                if not step():
                    return None
            missed = torch.cat(parts)
            strengths.append(_strength(missed))
            ways.append(missed.mean((2, 3)))
    return [seen, torch.cat(strengths, 1), torch.cat(ways, 1)]


def _seen(family: PictureFamily, pixels: Tensor) -> Tensor:
    maps = [one[0].flatten(1).float().cpu() for one in family.image_features(pixels[None])]
    return torch.cat([part for one in maps for part in (one.mean(1), one.std(1).clamp(min=1e-6).log())])


def _strength(missed: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, BANDS c]: the logarithm of its mean square, by channel, in bands from fine to coarse."""
    found = []
    for band in range(BANDS):
        height, width = missed.shape[-2:]
        coarse = F.adaptive_avg_pool2d(missed, (max(1, height // 2), max(1, width // 2)))
        rest = missed - F.interpolate(coarse, size=(height, width)) if band < BANDS - 1 else missed
        found.append(rest.square().mean((2, 3)).clamp(min=1e-12).log())
        missed = coarse
    return torch.cat(found, 1)


def apart(descriptions: Sequence[Tensor]) -> Tensor:
    """How much farther each picture is from the others than they are from one another, [n]: robust deviations of the
    logarithm of its median distance (Iglewicz and Hoaglin 1993), on average over the descriptions."""
    return torch.stack([_apart(one.double()) for one in descriptions]).mean(0)


def _apart(description: Tensor) -> Tensor:
    scaled = _deviations(description, 1e-6).clamp(-CLIP, CLIP)
    distances = (scaled[:, None] - scaled[None]).square().mean(2).sqrt().sort(1).values
    middle = distances[:, max(1, len(distances) // 2)]  # the first is the picture's own
    return _deviations(middle.clamp(min=1e-12).log()[:, None], SPREAD)[:, 0]


def _deviations(values: Tensor, least: float) -> Tensor:
    """Of each column, [n, k]: how many robust deviations each lies above the median."""
    off = values - values.quantile(0.5, 0)
    return off / (1.4826 * off.abs().quantile(0.5, 0)).clamp(min=least)


def strays(descriptions: Sequence[Tensor]) -> list[int]:
    """The pictures that are unlike the others, the farthest first."""
    far = apart(descriptions)
    found = [i for i in far.argsort(descending=True).tolist() if far[i] > LIMIT]
    return found if len(far) >= LEAST and len(found) <= SHARE * len(far) else []
