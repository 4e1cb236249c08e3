"""All the randomness of a diffusion step: which noise level, which noise. Each latent draws from its own generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Sampling = Literal["uniform", "logit_normal", "sigmoid", "mode"]


STEPS = 1000
"""Parts of the range of noise levels that `Timesteps.first` and `last` count in."""


def middle(part: Tensor, levels: int) -> Tensor:
    """The middle of part 0 … levels - 1 of [0, 1), float64: no rounding takes it out of its part."""
    return (part.double() + 0.5) / levels


def at_level(thousandth: int, levels: int) -> int:
    """A bound in thousandths as one of `levels` parts."""
    return round(thousandth * levels / STEPS)


@dataclass(frozen=True)
class Draws:
    """All the randomness of one batch of n latents; the loss is a function of these."""

    u: Tensor
    """float64 [n] on the CPU: noise levels in [0, 1), the higher the noisier; the family says what they are"""
    noise: Tensor
    """as the latents: what an epsilon model should answer"""
    posterior: Tensor
    """as the latents: the sample of the VAE's posterior is mean + std * posterior"""
    perturbation: Tensor | None = None
    """as the latents: more noise in the input, of which the target knows nothing"""

    @property
    def mixed(self) -> Tensor:
        """What is mixed in, with what the target knows nothing of."""
        return self.noise if self.perturbation is None else self.noise + self.perturbation

    def to(self, device: torch.device) -> Draws:
        more = None if self.perturbation is None else self.perturbation.to(device)
        return Draws(self.u, self.noise.to(device), self.posterior.to(device), more)


@dataclass(frozen=True)
class Timesteps:
    """How noise levels are drawn: a number u in [0, 1), shifted, laid over first … last."""

    sampling: Sampling = "uniform"
    mean: float = 0.0
    """Of the normal number whose sigmoid is u ("logit_normal"; Esser et al. 2024, eq. 19)."""
    std: float = 1.0
    """Its standard deviation; for "sigmoid" the factor that other trainers call sigmoid_scale, with mean 0."""
    mode_scale: float = 1.29
    """Of "mode" (Esser et al. 2024, section 3.1), -1 … 2 / (pi - 2), between which u grows with the quantile: above 0
    more from the middle, below it more from both ends."""
    shift: float = 1.0
    """u -> shift * u / (1 + (shift - 1) * u): above 1, noisier (Esser et al. 2024, eq. 23)."""
    first: int = 0
    last: int = 999
    """In thousandths of the whole range, both included."""

    def at(self, quantiles: Tensor, levels: int | None = STEPS) -> Tensor:
        """Numbers u of the range, float64 as `quantiles` in [0, 1), which say what share of all draws lies below each;
        with `levels` the middles of so many equal parts."""
        share = self._share(quantiles)
        if levels is None:
            u = self.first + share * (self.last + 1 - self.first)
            return (u / STEPS).clamp(max=math.nextafter((self.last + 1) / STEPS, 0))
        first, last = at_level(self.first, levels), at_level(self.last + 1, levels) - 1
        count = last - first + 1
        return middle(first + (share * count).long().clamp(max=count - 1), levels)

    def _share(self, u: Tensor) -> Tensor:
        """Numbers in [0, 1] of quantiles u, as `sampling` and `shift` say."""
        if self.sampling == "mode":  # diffusers' and the paper's are this of 1 - u, which is drawn as often as u
            u = u + self.mode_scale * (u - torch.sin(math.pi / 2 * u).square())
        elif self.sampling != "uniform":
            mean = self.mean if self.sampling == "logit_normal" else 0.0
            u = torch.sigmoid(mean + self.std * torch.special.ndtri(u))
        return self.shift * u / (1 + (self.shift - 1) * u)


@dataclass(frozen=True)
class NoiseSettings:
    """What the noise is made of besides independent normal numbers."""

    offset: float = 0.0
    """Times one normal number per channel, added everywhere (Guttenberg 2023, "Diffusion with offset noise")."""
    multires_iterations: int = 0
    """Coarser layers of noise added (Whitaker 2023, "Multi-resolution noise"); 0: none."""
    multires_discount: float = 0.3
    """The weight of layer i is discount ** i."""
    perturbation: float = 0.0
    """Times further noise, added to the input only (Ning et al. 2023, algorithm 1)."""


def draw(
    shape: tuple[int, ...],
    generators: list[torch.Generator],
    timesteps: Timesteps = Timesteps(),
    noise: NoiseSettings = NoiseSettings(),
    levels: int | None = STEPS,
    quantiles: Tensor | None = None,
) -> Draws:
    """Noise and noise levels, each latent from its own generator: no neighbour in the batch changes another's.

    `shape` is (n, c, h, w), `generators` n CPU generators; `levels` how many there are, None: any number; `quantiles`
    float64 [n] in [0, 1) as of `Timesteps.at`, in place of drawn ones.
    """
    chance, noises, posterior, more = [], [], [], []
    for g in generators:
        chance.append(torch.rand((), generator=g, dtype=torch.float64))
        e = torch.randn(shape[1:], generator=g)
        posterior.append(torch.randn(shape[1:], generator=g))
        if noise.offset:
            e = e + noise.offset * torch.randn(shape[1], *[1] * (len(shape) - 2), generator=g)
        if noise.multires_iterations:
            e = _multires(e, noise, g)
        if noise.perturbation:
            more.append(noise.perturbation * torch.randn(shape[1:], generator=g))
        noises.append(e)
    extra = torch.stack(more) if more else None
    u = timesteps.at(torch.stack(chance) if quantiles is None else quantiles, levels)
    return Draws(u, torch.stack(noises), torch.stack(posterior), extra)


def _multires(e: Tensor, noise: NoiseSettings, g: torch.Generator) -> Tensor:
    """[c, h, w] noise with coarser layers, each 2 to 4 times coarser than the one before, at unit variance again."""
    height, width = e.shape[1:]
    for i in range(1, noise.multires_iterations + 1):
        ratio = (2 + 2 * torch.rand((), generator=g).item()) ** i
        h, w = max(1, int(height / ratio)), max(1, int(width / ratio))
        layer = torch.randn(1, e.shape[0], h, w, generator=g)
        e = e + noise.multires_discount**i * F.interpolate(layer, size=(height, width), mode="bilinear")[0]
        if h == w == 1:
            break
    return e / e.std()
