"""Which pictures of a set are unlike the others, in style or in what they show: by what a base makes of them, and how
they are drawn.

Three descriptions are the base's: what the VAE's encoder sees (mean and spread of each channel of its maps, the usual
description of a style), how strong what the base misses of the picture is with its own caption (by noise level, channel
and coarseness), and which way it goes on average. Pictures that the base knows vary in the first, by day and night, and
not in the second. Two are of the pixels alone: how strong their details are, from fine to coarse, and how sparse
(lines, dots and hatching, of which a base that cannot draw them tells little), and which colours they have: styles may
differ in nothing else.
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
NEAREST = 3
"""Neighbours."""
FIRST, FURTHER = 0.7, 0.5
"""How far, by `apart`, the farthest picture must be for a set to have strays, and the others to be named with it: about
2 and 1.6 times as far as usual. The farthest of a set without strays is often the only white thing on snow; beside a
clear stray less will do."""
SHARE = 0.3
"""Of a set: more strays are none."""
CLIP = 10.0
"""Deviations of one number that count at most."""
BANDS = 3
"""Of coarseness, each half as fine as the one before."""
COARSEST = 8
"""Pixels along the shorter side of the least picture whose details are described."""
FAINT = 1e-5
"""The mean square of details, of pixels in [-1, 1], that counts as none: about that of rounding to 8 bits."""
TONES = 6
"""Of each primary; with 5 or 8 one or two strays in a hundred fewer were named."""
ENOUGH = 0.01
"""A picture has a colour if so many of its pixels, as a share, have it or one beside it."""
RARE = 0.3
"""What rare colours weigh: without them five strays in a hundred fewer were named, with 0.2 or 0.4 as many."""


def steps(family: PictureFamily, pictures: Sequence[Tensor]) -> int:
    """How often `described` calls its `step`."""
    many = at_a_time(family.encode_image(pictures[0][None])["mean"])
    return len(LEVELS) * -(-len(pictures) // many)


def described(
    family: PictureFamily, pictures: Sequence[Tensor], captions: Sequence[str], step: Callable[[], bool]
) -> list[Tensor] | None:
    """The five descriptions of n pictures, [3, h, w] in [-1, 1] and all of one size: each [n, numbers] float32 on the
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
    by_pixels = (torch.stack([look(pixels) for pixels in pictures]) for look in (drawn, palette))
    return [seen, torch.cat(strengths, 1), torch.cat(ways, 1), *by_pixels]


def drawn(pixels: Tensor) -> Tensor:
    """[3, h, w] in [-1, 1] -> of each level of its Laplacian pyramid (Burt and Adelson 1983), from fine to coarse, the
    logarithms of the mean squares of brightness and of two differences of colours, and of brightness's kurtosis."""
    red, green, blue = pixels.float().cpu()
    level = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue])
    found = []
    while min(level.shape[1:]) > COARSEST:
        coarse = F.adaptive_avg_pool2d(level, (level.shape[1] // 2, level.shape[2] // 2))
        details = (level - F.interpolate(coarse[None], size=level.shape[1:])[0]).square()
        power = details.mean((1, 2))
        kurtosis = details[0].square().mean() / (power[0].square() + FAINT**2)
        found.append(torch.cat([power.clamp(min=FAINT).log(), kurtosis.add(1).log()[None]]))
        level = coarse
    return torch.cat(found)


def palette(pixels: Tensor) -> Tensor:
    """[3, h, w] in [-1, 1] -> [TONES³]: the share of its pixels in each cube of colours."""
    red, green, blue = ((pixels.float().cpu().flatten(1) + 1) / 2 * TONES).long().clamp(0, TONES - 1)
    return torch.bincount((red * TONES + green) * TONES + blue, minlength=TONES**3) / red.numel()


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
    """How much farther each picture is from the others than they are from one another, [n]: the logarithm of that
    ratio, the mean of four descriptions, and what its colours add."""
    *others, palettes = (one.double() for one in descriptions)
    rare = _rare(palettes)
    return torch.stack([_apart(one) for one in others]).mean(0) + RARE * (rare - rare.quantile(0.5))


def _apart(description: Tensor) -> Tensor:
    """By two distances, the median one and that of the nearest neighbours: in a set of days and nights the first says
    little. Numbers count by their robust deviations (Iglewicz and Hoaglin 1993); a set's ratios do not, since the
    spread of a few is hardly known."""
    off = description - description.quantile(0.5, 0)
    scaled = (off / (1.4826 * off.abs().quantile(0.5, 0)).clamp(min=1e-6)).clamp(-CLIP, CLIP)
    distances = (scaled[:, None] - scaled[None]).square().mean(2).sqrt().sort(1).values
    far = distances[:, max(1, len(distances) // 2)], distances[:, 1 : NEAREST + 1].mean(1)  # the first is its own
    logarithms = torch.stack(far, 1).clamp(min=1e-12).log()
    return (logarithms - logarithms.quantile(0.5, 0)).mean(1)


def _rare(palettes: Tensor) -> Tensor:
    """The mean, over each picture's pixels, of minus the logarithm of the share of pictures that have their colour."""
    cubes = palettes.unflatten(1, (1, TONES, TONES, TONES))
    has = (F.avg_pool3d(cubes, 3, 1, 1, divisor_override=1).flatten(1) / ENOUGH).clamp(max=1)
    return -(palettes * has.mean(0).clamp(min=1 / len(palettes)).log()).sum(1)


def strays(descriptions: Sequence[Tensor]) -> list[int]:
    """The pictures that are unlike the others, the farthest first."""
    far = apart(descriptions)
    found = [i for i in far.argsort(descending=True).tolist() if far[i] > FURTHER]
    there = len(far) >= LEAST and bool(far.max() > FIRST) and len(found) <= SHARE * len(far)
    return found if there else []
