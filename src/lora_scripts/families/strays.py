"""Which pictures of a set are unlike the others, in style or in what they show: by what a base makes of them, and how
they are drawn.

Four descriptions have one say each. Two are of what the base misses of the picture at a low noise level, where it has
to know textures: how strong that is, by channel and coarseness, and how its channels go together (of what it knows,
white noise is left; of a style that it does not know, that style's texture). Two are of the pixels alone: how strong
their details are, from fine to coarse, and how sparse (lines, dots and hatching, of which a base that cannot draw them
tells little); and how sharp they are, place by place, where what the picture shows cancels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.families.base import PictureFamily
from lora_scripts.families.exchanged import at_a_time, missed_with

LEVEL = 0.05
"""Noise level, as a share of the range: at higher ones it counts more what a picture shows, and less how."""
LEAST = 12
"""Pictures: among fewer none is unlike the others."""
NEAREST = 3
"""Neighbours."""
FIRST, FURTHER = 0.6, 0.48
"""How far, by `apart`, the farthest picture must be for a set to have strays, and the others to be named with it: 1.8
and 1.6 times as far as usual. The farthest of a set without strays is often the only white thing on snow; beside a
clear stray less will do."""
MOST = 1.1
"""As far as one description can say: three times. The only picture without red, of a style with few colours, is six
times as far by one of them, and like the others by the rest."""
SHARE = 0.3
"""Of a set: more strays are none."""
CLIP = 10.0
"""Deviations of one number that count at most."""
BANDS = 3
"""Of coarseness, each half as fine as the one before."""
COARSEST = 8
"""Pixels along the shorter side of the least picture whose details are described."""
PLACES = 16
"""Along each side, in which a picture's sharpness is looked at."""
QUANTILES = 0.1, 0.5, 0.9
FAINT = 1e-5
"""The mean square of details, of pixels in [-1, 1], that counts as none: about that of rounding to 8 bits."""


def steps(family: PictureFamily, pictures: Sequence[Tensor]) -> int:
    """How often `described` calls its `step`."""
    return -(-len(pictures) // _many(family, pictures))


def _many(family: PictureFamily, pictures: Sequence[Tensor]) -> int:
    return at_a_time(family.encode_image(pictures[0][None])["mean"])


def described(
    family: PictureFamily, pictures: Sequence[Tensor], captions: Sequence[str], step: Callable[[], bool]
) -> list[Tensor] | None:
    """The four descriptions of n pictures, [3, h, w] in [-1, 1] and all of one size: each [n, numbers] float32 on the
    CPU. `step` is called after each batch; None if it says no."""
    many, size, found = _many(family, pictures), (pictures[0].shape[2], pictures[0].shape[1]), []
    with torch.no_grad():
        texts = family.encode_text(captions)
        for first in range(0, len(pictures), many):
            some = slice(first, first + many)
            told = {name: values[some] for name, values in texts.items()}
            latents = torch.cat([family.encode_image(pixels[None])["mean"] for pixels in pictures[some]])
            noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(0))
            missed = missed_with(family, latents, captions[some], told, noise, LEVEL, size).cpu()
            finer = [details(pixels) for pixels in pictures[some]]
            by_pixels = [torch.stack([how(levels) for levels in finer]) for how in (drawn, sharpness)]
            found.append((strength(missed), texture(missed), *by_pixels))
            if not step():
                return None
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def details(pixels: Tensor) -> list[Tensor]:
    """[3, h, w] in [-1, 1] -> the levels of its Laplacian pyramid (Burt and Adelson 1983), from fine to coarse, each
    [3, h, w]: brightness and two differences of colours."""
    red, green, blue = pixels.float().cpu()
    level, found = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue]), []
    while min(level.shape[1:]) > COARSEST:
        coarse = F.adaptive_avg_pool2d(level, (level.shape[1] // 2, level.shape[2] // 2))
        found.append(level - F.interpolate(coarse[None], size=level.shape[1:])[0])
        level = coarse
    return found


def drawn(levels: Sequence[Tensor]) -> Tensor:
    """Of each level, the logarithms of the mean squares of its channels, and of brightness's kurtosis."""
    found = []
    for level in levels:
        power = level.square().mean((1, 2))
        kurtosis = level[0].pow(4).mean() / (power[0].square() + FAINT**2)
        found.append(torch.cat([power.clamp(min=FAINT).log(), kurtosis.add(1).log()[None]]))
    return torch.cat(found)


def sharpness(levels: Sequence[Tensor]) -> Tensor:
    """Of each level, how unevenly its details are spread over `PLACES` x `PLACES` places; and of each two neighbouring
    ones, how much stronger the finer is there: the mean, the deviation and three quantiles of that ratio over the
    places (all in logarithms), and how the two correlate.

    Where there is an edge, both are strong, whatever it is an edge of: their ratio tells how it is drawn."""
    by_place = [
        F.adaptive_avg_pool2d(level.square().sum(0)[None], PLACES).flatten().clamp(min=FAINT).log() for level in levels
    ]
    found = [torch.stack([_spread(strong) for strong in by_place])]
    for fine, coarse in itertools.pairwise(by_place):
        ratio = fine - coarse
        together = ((fine - fine.mean()) * (coarse - coarse.mean())).mean()
        correlation = together / (fine.var(correction=0) * coarse.var(correction=0)).clamp(min=1e-8).sqrt()
        found += [torch.stack([ratio.mean(), _spread(ratio), correlation]), ratio.quantile(torch.tensor(QUANTILES))]
    return torch.cat(found)


def _spread(values: Tensor) -> Tensor:
    return values.std().clamp(min=1e-3).log()


def strength(missed: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, BANDS c]: the logarithm of its mean square, by band and channel."""
    return torch.cat([band.square().mean((2, 3)).clamp(min=1e-12).log() for band in _bands(missed)], 1)


def texture(missed: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, BANDS (c + c (c - 1) / 2)]: by band, the logarithm of each channel's deviation over the
    places, and how it correlates with each other channel's (as Gatys et al. 2016 describe a style)."""
    found = []
    for band in _bands(missed):
        off = (band - band.mean((2, 3), keepdim=True)).flatten(2)
        covariance = off @ off.transpose(1, 2) / off.shape[2]
        deviation = covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
        first, second = torch.triu_indices(off.shape[1], off.shape[1], 1)
        found += [deviation.log(), covariance[:, first, second] / (deviation[:, first] * deviation[:, second])]
    return torch.cat(found, 1)


def _bands(maps: Tensor) -> list[Tensor]:
    """[n, c, h, w] as `BANDS` maps, from fine to coarse: what means of 2 x 2 leave of it, of them, and what is left."""
    found = []
    for _ in range(BANDS - 1):
        height, width = maps.shape[-2:]
        coarse = F.adaptive_avg_pool2d(maps, (max(1, height // 2), max(1, width // 2)))
        found.append(maps - F.interpolate(coarse, size=(height, width)))
        maps = coarse
    return [*found, maps]


def apart(descriptions: Sequence[Tensor]) -> Tensor:
    """How much farther each picture is from the others than they are from one another, [n]: the logarithm of that
    ratio, whose mean over the descriptions counts: what is far by one alone is seldom far by the others."""
    return torch.stack([_apart(one.double()) for one in descriptions]).clamp(max=MOST).exp().mean(0).log()


def _apart(description: Tensor) -> Tensor:
    """By two distances, the median one and that of the nearest neighbours: in a set of days and nights the first says
    little. Numbers count by their robust deviations (Iglewicz and Hoaglin 1993), whose squares are drawn halfway to the
    usual one of all numbers, since that of a few pictures is hardly known (as Smyth 2004 moderates variances)."""
    off = description - description.quantile(0.5, 0)
    square = (1.4826 * off.abs().quantile(0.5, 0)).square()
    scaled = (off / ((square + square.quantile(0.5)) / 2).sqrt().clamp(min=1e-6)).clamp(-CLIP, CLIP)
    distances = (scaled[:, None] - scaled[None]).square().mean(2).sqrt().sort(1).values
    far = distances[:, max(1, len(distances) // 2)], distances[:, 1 : NEAREST + 1].mean(1)  # the first is its own
    logarithms = torch.stack(far, 1).clamp(min=1e-12).log()
    return (logarithms - logarithms.quantile(0.5, 0)).mean(1)


def strays(descriptions: Sequence[Tensor]) -> list[int]:
    """The pictures that are unlike the others, the farthest first."""
    far = apart(descriptions)
    found = [i for i in far.argsort(descending=True).tolist() if far[i] > FURTHER]
    there = len(far) >= LEAST and bool(far.max() > FIRST) and len(found) <= SHARE * len(far)
    return found if there else []
