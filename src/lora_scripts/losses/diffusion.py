"""Diffusion objectives, pure: schedule, noised latents, target, weight. Randomness is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v"]


def alphas_cumprod(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Tensor:
    """Products of (1 - beta_t), float32 [steps]; sqrt(beta) is linear, "scaled linear" (Rombach et al. 2022)."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def snr(a: Tensor) -> Tensor:
    """Signal-to-noise ratio of a_t = alphas_cumprod[t] (Kingma et al. 2021): a / (1 - a)."""
    return a / (1 - a)


def add_noise(x0: Tensor, noise: Tensor, a: Tensor) -> Tensor:
    """x_t = sqrt(a) x0 + sqrt(1 - a) noise (Ho et al. 2020, eq. 4); `a` is [n], one for each of the n latents."""
    a = _as(a, x0)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def target(x0: Tensor, noise: Tensor, a: Tensor, prediction: Prediction) -> Tensor:
    """What the model should say: the noise, or v = sqrt(a) noise - sqrt(1 - a) x0 (Salimans & Ho 2022, app. D)."""
    if prediction == "epsilon":
        return noise
    a = _as(a, x0)
    return a.sqrt() * noise - (1 - a).sqrt() * x0


def min_snr_weight(a: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Hang et al. 2023, section 3.4); [n]."""
    ratio = snr(a)
    return ratio.clamp(max=gamma) / (ratio if prediction == "epsilon" else ratio + 1)


@dataclass(frozen=True)
class Draws:
    """All the randomness of one batch of n latents; the loss is a function of these."""

    timesteps: Tensor
    """int64 [n]"""
    noise: Tensor
    """as the latents"""
    posterior: Tensor
    """as the latents: the sample of the VAE's posterior is mean + std * posterior"""


def draw(shape: tuple[int, ...], generators: list[torch.Generator], noise_offset: float, steps: int = 1000) -> Draws:
    """Noise and timesteps, each latent from its own generator: no neighbour in the batch changes another's.

    `shape` is (n, c, h, w), `generators` n CPU generators. `noise_offset` adds one normal number per channel, times the
    offset (Guttenberg 2023, "Diffusion with offset noise").
    """
    timesteps, noise, posterior = [], [], []
    for g in generators:
        timesteps.append(torch.randint(steps, (), generator=g))
        e = torch.randn(shape[1:], generator=g)
        posterior.append(torch.randn(shape[1:], generator=g))
        if noise_offset:
            e = e + noise_offset * torch.randn(shape[1], *[1] * (len(shape) - 2), generator=g)
        noise.append(e)
    return Draws(torch.stack(timesteps), torch.stack(noise), torch.stack(posterior))


@dataclass(frozen=True)
class Objective:
    """The settings of the loss; family and schedule independent."""

    prediction: Prediction = "epsilon"
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0


def loss_of(output: Tensor, x0: Tensor, draws: Draws, a: Tensor, objective: Objective) -> Tensor:
    """Weighted squared error of each latent, float32 [n]."""
    wanted = target(x0, draws.noise, a, objective.prediction)
    each = (output.float() - wanted.float()).square().flatten(1).mean(1)
    if objective.min_snr_gamma is not None:
        each = each * min_snr_weight(a, objective.min_snr_gamma, objective.prediction)
    return each


def _as(a: Tensor, like: Tensor) -> Tensor:
    return a.view(-1, *[1] * (like.dim() - 1))
