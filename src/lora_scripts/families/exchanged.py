"""Which captions of a set were exchanged: what a base says of every picture with every caption of the set.

A diffusion model is a classifier (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier"): of
several captions the one fits a picture with which its noise is foretold best, at the same noise. That holds for
pictures such as the base knows. In a style that it does not know, a caption still moves the answer, but elsewhere in
the latents' channels than the picture does. So a linear map of the channels, fitted to the whole set at each noise
level, translates the one into the other before they are compared: for picture i, caption j and every place x

    missed_i(x) - mean_x = B (moved_ij(x) - mean'_x) + noise of covariance S,

where `missed` is the target less the mean answer over all captions, and `moved` the answer less that mean. The means
over the set take out what the style does to all pictures, whatever they show. What is coarse and what is fine have maps
of their own. B and S are fitted with the captions as they stand; a fifth of them may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.families.base import Batch, PictureFamily, Place
from lora_scripts.losses.noise import Draws

LEVELS = (0.3, 0.5, 0.65)
"""Noise levels, as shares of the range."""
LEAST = 10
"""Pictures with captions: fewer say nothing of a set."""
MOST = 32
"""Pictures whose captions are compared with one another: larger sets are looked at in parts, of neighbours."""
PLACES = 32
"""Along a side of the latents: of more, means over squares are taken."""
BATCH = 16
"""Captions at a time, at most; of large latents as many as have `ROOM` places together."""
ROOM = 2**16
ENOUGH = 0.4
"""Of what a wrong caption typically costs: what every exchanged one must gain in its right place."""
LEAST_GAIN = 0.65
"""And in deviations of what captions cost beside their pictures: where all of them say nearly the same, as of one
thing, even the typical cost is small."""
KNOWN = 0.7
"""Deviations of what captions cost beside their pictures: what it must typically cost to change two, by maps that know
nothing of the picture. A base that knows less of a set's captions is not asked which are wrong."""
RIDGE = 1e-3
"""Of the map, as a share of its inputs' variance."""


@dataclass(frozen=True)
class Exchanged:
    """Captions that seem to belong to one another's pictures."""

    cycle: tuple[int, ...]
    """Indices of pictures: the caption of each belongs to the one before it, and that of the first to the last."""
    gain: float
    """What each of them gains by it, on average, in deviations of what captions cost beside their pictures."""


def asked(
    family: PictureFamily, pictures: Sequence[Tensor], captions: Sequence[str], step: Callable[[], bool]
) -> Tensor | None:
    """What the base misses of n pictures, [3, h, w] in [-1, 1] and all of one size, with each of their captions:
    [levels, n, n, c, h', w'] float16 on the CPU. `step` is called after each picture at each level; None if it says no.
    """
    said = list(dict.fromkeys(captions))
    columns = torch.tensor([said.index(caption) for caption in captions])
    with torch.no_grad():
        texts = family.encode_text(said)
        latents = [family.encode_image(pixels[None])["mean"] for pixels in pictures]
        many, size = at_a_time(latents[0]), (pictures[0].shape[2], pictures[0].shape[1])
        levels = []
        for number, u in enumerate(LEVELS):
            noise = torch.randn(latents[0].shape, generator=torch.Generator().manual_seed(number))
            rows = []
            for mean in latents:
                parts = []
                for first in range(0, len(said), many):
                    some = {name: values[first : first + many] for name, values in texts.items()}
                    words = said[first : first + many]
                    copies = mean.expand(len(words), *mean.shape[1:])
                    parts.append(_coarse(missed_with(family, copies, words, some, noise, u, size)))
                rows.append(torch.cat(parts)[columns].half().cpu())
                if not step():
                    return None
            levels.append(torch.stack(rows))
    return torch.stack(levels)


def missed_with(
    family: PictureFamily,
    latents: Tensor,
    captions: Sequence[str],
    texts: Mapping[str, Tensor],
    noise: Tensor,
    u: float,
    size: tuple[int, int],
) -> Tensor:
    """What the base misses of n latents [n, c, h, w] with n captions, encoded, at one noise [1, c, h, w] and noise
    level; `size`: (width, height) of the pictures in pixels. [n, c, h, w] float32."""
    still, n = torch.zeros_like(latents), len(captions)
    places = Place(size, (0, 0), size).numbers().expand(n, 6)
    batch = Batch({"mean": latents, "std": still}, captions, dict(texts), [""] * n, [], places=places)
    draws = Draws(torch.full((n,), u, dtype=torch.float64), noise.expand_as(latents), still)
    return family.missed(batch, family.objective, draws)


def at_a_time(latents: Tensor) -> int:
    """How many latents like these [n, c, h, w] are asked about at a time."""
    return max(1, min(BATCH, ROOM // latents[0, 0].numel()))


def _coarse(missed: Tensor) -> Tensor:
    height, width = missed.shape[-2:]
    return F.adaptive_avg_pool2d(missed, (min(height, PLACES), min(width, PLACES)))


def exchanged(missed: Tensor) -> list[Exchanged] | None:
    """Captions that were exchanged, the surest first, from what `asked` gave of the captions as they stand; None where
    the base hardly tells the captions of these pictures apart.

    Of all ways to hand the captions out, the best one is taken, where each that moves must gain `ENOUGH` of what it
    typically costs when two pictures change their captions, and `LEAST_GAIN`.
    """
    n = missed.shape[1]
    if n < LEAST or _typical(apart := misfit(missed, apart=True)) < KNOWN:
        return None
    judged = (misfit(missed, apart=False) + apart) / 2
    typical = _typical(judged)
    cost = judged.double().numpy()
    to = linear_sum_assignment(cost + max(ENOUGH * typical, LEAST_GAIN) * (1 - np.eye(n)))[1]
    found, seen = [], set[int]()
    for start in range(n):
        cycle = [start]
        while (follows := int(to[cycle[-1]])) != start:
            cycle.append(follows)
        if len(cycle) > 1 and start not in seen:
            gain = np.mean([cost[i, i] - cost[i, to[i]] for i in cycle])
            found.append(Exchanged(tuple(cycle), float(gain)))
        seen.update(cycle)
    return sorted(found, key=lambda one: -one.gain)


def _typical(misfit: Tensor) -> float:
    """What each of two pictures typically loses when they change their captions: half the median over all pairs."""
    own = misfit.diagonal()
    change = misfit + misfit.T - own[:, None] - own
    first, second = torch.triu_indices(len(own), len(own), 1)
    return change[first, second].median().item() / 2


def misfit(missed: Tensor, *, apart: bool) -> Tensor:
    """How ill each caption fits each picture, [n, n] float32, the captions of pictures in their order; from what
    `asked` gave. Means of rows and of columns are 0, and the deviation beside the diagonal is 1 at each level.

    With `apart` each picture is judged by maps that the others alone made: fair, but the less sure the fewer there
    are. By maps of the whole set its own caption looks better than it is.
    """
    levels = []
    for level in missed:
        cost = torch.stack([_of_band(band, apart) for band in _bands(level.float())]).sum(0)
        cost = cost - cost.mean(1, keepdim=True)
        cost = cost - cost.mean(0)
        beside = cost[~torch.eye(len(cost), dtype=torch.bool)]
        levels.append(cost / beside.std().clamp(min=1e-12))
    return torch.stack(levels).mean(0)


def _bands(missed: Tensor) -> tuple[Tensor, Tensor]:
    """[n, n, c, h, w] as what is coarse, in half as many places a side, and what is fine: they need maps of their own,
    since a style changes the one less than the other."""
    flat = missed.flatten(0, 1)
    height, width = flat.shape[-2:]
    coarse = F.adaptive_avg_pool2d(flat, (height // 2, width // 2))
    fine = flat - F.interpolate(coarse, size=(height, width))
    return coarse.unflatten(0, missed.shape[:2]), fine.unflatten(0, missed.shape[:2])


def _of_band(missed: Tensor, apart: bool) -> Tensor:
    """The cost of each caption for each picture, [n, n], by one band of one level, [n, n, c, h, w]."""
    left = missed.flatten(3).transpose(2, 3)  # [n, n, places, c]
    everyone = torch.arange(len(left))
    y = left.mean(1)
    x = y[:, None] - left
    own = x[everyone, everyone]
    whole = None if apart else _Map.of(own, y)
    rows = []
    for i in everyone:
        others = everyone[everyone != i]
        rows.append((whole or _Map.of(own[others], y[others])).misfit(x[i], y[i]))
    return torch.stack(rows)


class _Map(NamedTuple):
    """From how captions move the base's answer to what it misses: the module's formula."""

    mean_x: Tensor
    mean_y: Tensor
    b: Tensor
    root: Tensor
    """A root of the inverse of S."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Map:
        """Fitted to n pictures with their captions, both [n, places, c]."""
        mean_x, mean_y = x.mean(0), y.mean(0)
        rows_x, rows_y = (x - mean_x).flatten(0, 1), (y - mean_y).flatten(0, 1)
        xx, eye = rows_x.T @ rows_x, torch.eye(x.shape[2])
        b = torch.linalg.solve(xx + (RIDGE * xx.diagonal().mean() + 1e-12) * eye, rows_x.T @ rows_y)
        rest = rows_y - rows_x @ b
        s = rest.T @ rest / len(rest)
        root = torch.linalg.cholesky(torch.linalg.inv(s + (1e-6 * s.diagonal().mean() + 1e-12) * eye))
        return cls(mean_x, mean_y, b, root)

    def misfit(self, x: Tensor, y: Tensor) -> Tensor:
        """Of k captions, x [k, places, c], and a picture, y [places, c]: [k]."""
        return ((y - self.mean_y - (x - self.mean_x) @ self.b) @ self.root).square().sum((1, 2))
