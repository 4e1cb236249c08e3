"""Diffusion objectives, pure: schedule, noised latents, target, weight, loss. Randomness is an argument.

Every schedule mixes x_t = signal * x0 + noise * e; they differ in the two factors and in what the model should answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.losses.flow import Sigmas, Weighting, flow_weight
from lora_scripts.losses.noise import Draws, NoiseSettings, Timesteps

Prediction = Literal["epsilon", "v", "flow"]
Measure = Literal["l2", "huber", "smooth_l1"]


def alphas_cumprod(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Tensor:
    """Products of (1 - beta_t), float32 [steps]; sqrt(beta) is linear, "scaled linear" (Rombach et al. 2022)."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def zero_terminal(a: Tensor) -> Tensor:
    """alphas_cumprod moved and stretched so that the last step is pure noise (Lin et al. 2023, algorithm 1)."""
    root = a.double().sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return (((root - last) * first / (first - last)) ** 2).float()


@dataclass(frozen=True)
class Levels:
    """How much of the picture and how much noise is in x_t, float32 [n] or [steps]."""

    signal: Tensor
    noise: Tensor

    def at(self, timesteps: Tensor) -> Levels:
        """The levels of n timesteps."""
        return Levels(self.signal[timesteps], self.noise[timesteps])

    def to(self, device: torch.device) -> Levels:
        return Levels(self.signal.to(device), self.noise.to(device))

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio (Kingma et al. 2021): signal^2 / noise^2, as a / (1 - a) where signal^2 is a."""
        a = self.signal.square()
        return a / self.noise.square()


@dataclass(frozen=True)
class Schedule:
    """A noise schedule of a number of timesteps: what a number u in [0, 1), the noisier the higher, stands for."""

    levels: Levels
    """Of all timesteps, on the CPU."""
    first: int = 0
    """What the model is told of timestep 0."""

    def __len__(self) -> int:
        return len(self.levels.signal)

    def at(self, u: Tensor, device: torch.device) -> tuple[Levels, Tensor]:
        """(the levels, what the model is told) of n numbers u, both [n] on `device`.

        They are looked up where u lies: on the CPU no step waits for the device, on the device none waits for the CPU.
        """
        t = (u * len(self)).long().clamp(max=len(self) - 1)
        levels = self.levels if u.device.type == "cpu" else _levels_on(self, u.device)
        return levels.at(t).to(device), (t + self.first).to(device)


@cache
def _levels_on(schedule: Schedule, device: torch.device) -> Levels:
    return schedule.levels.to(device)


@cache
def discrete(prediction: Prediction, *, zero_terminal_snr: bool = False, steps: int = 1000) -> Schedule:
    """The schedule of a base with timesteps; one that predicts flow is told 1000 sigma, as diffusers does."""
    levels = schedule(prediction, zero_terminal_snr=zero_terminal_snr, steps=steps)
    return Schedule(levels, 1 if prediction == "flow" else 0)


def schedule(prediction: Prediction, *, zero_terminal_snr: bool = False, steps: int = 1000) -> Levels:
    """The levels of all timesteps: variance preserving with sqrt(a), sqrt(1 - a), or for "flow" the straight line
    1 - sigma, sigma with sigma = (t + 1) / steps (Liu et al. 2022)."""
    if prediction == "flow":
        sigma = torch.arange(1, steps + 1) / steps
        return Levels(1 - sigma, sigma)
    a = alphas_cumprod(steps=steps)
    a = zero_terminal(a) if zero_terminal_snr else a
    return Levels(a.sqrt(), (1 - a).sqrt())


def add_noise(x0: Tensor, noise: Tensor, levels: Levels) -> Tensor:
    """x_t (Ho et al. 2020, eq. 4; for flow, Liu et al. 2022, eq. 1); `levels` of the n latents."""
    return _as(levels.signal, x0) * x0 + _as(levels.noise, x0) * noise


def target(x0: Tensor, noise: Tensor, levels: Levels, prediction: Prediction) -> Tensor:
    """What the model should say: the noise; v = sqrt(a) noise - sqrt(1 - a) x0 (Salimans & Ho 2022, app. D); or the
    flow's velocity noise - x0 (Liu et al. 2022)."""
    if prediction == "epsilon":
        return noise
    if prediction == "flow":
        return noise - x0
    return _as(levels.signal, x0) * noise - _as(levels.noise, x0) * x0


def min_snr_weight(snr: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Hang et al. 2023, section 3.4); [n]."""
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def debiased_weight(snr: Tensor, prediction: Prediction) -> Tensor:
    """1 / sqrt(SNR) for epsilon (Yu et al. 2023, eq. 12), at most SNR 1000; for v the same weight on the predicted
    picture, 1 / (SNR + 1) * sqrt(SNR); [n]."""
    snr = snr.clamp(max=1000)
    return snr.rsqrt() if prediction == "epsilon" else snr.sqrt() / (snr + 1)


@dataclass(frozen=True)
class Objective:
    """The settings of the loss; family independent."""

    prediction: Prediction = "epsilon"
    min_snr_gamma: float | None = None
    debiased: bool = False
    weighting: Weighting = "none"
    """Of levels where flow is predicted."""
    zero_terminal_snr: bool = False
    measure: Measure = "l2"
    huber_delta: float = 0.1
    """Errors above it count in proportion, below it squared."""
    sigmas: Sigmas = field(default_factory=Sigmas)
    """Of a model made for continuous noise levels: those that its sampler draws with."""
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    timesteps: Timesteps = field(default_factory=Timesteps)


def loss_of(
    output: Tensor,
    x0: Tensor,
    draws: Draws,
    levels: Levels,
    objective: Objective,
    mask: Tensor | None = None,
    wanted: Tensor | None = None,
) -> Tensor:
    """The weighted error of each latent, float32 [n]; `wanted`: in place of the objective's own target.

    `mask` [n, 1, h, w], 0 … 1, says how much each place counts; the sum is divided by the mask's own, so that a small
    subject counts as much as a large one.
    """
    wanted = target(x0, draws.noise, levels, objective.prediction) if wanted is None else wanted
    error = _error(output.float(), wanted.float(), objective)
    if mask is None:
        each = error.flatten(1).mean(1)
    else:
        weight = mask.expand_as(error).flatten(1)
        each = (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
    if objective.min_snr_gamma is not None:
        each = each * min_snr_weight(levels.snr, objective.min_snr_gamma, objective.prediction)
    if objective.debiased:
        each = each * debiased_weight(levels.snr, objective.prediction)
    if objective.weighting != "none":
        each = each * flow_weight(levels.noise, objective.weighting)
    return each


def _error(output: Tensor, wanted: Tensor, objective: Objective) -> Tensor:
    """Element by element; l2 and huber are the square of a small error, smooth_l1 is half of huber over its delta."""
    delta = objective.huber_delta
    if objective.measure == "huber":  # Huber 1964: quadratic up to delta, then linear
        return 2 * F.huber_loss(output, wanted, reduction="none", delta=delta)
    if objective.measure == "smooth_l1":  # Girshick 2015: Huber's over delta, so that its slope is 1 far out
        return F.smooth_l1_loss(output, wanted, reduction="none", beta=delta)
    return (output - wanted).square()


def _as(a: Tensor, like: Tensor) -> Tensor:
    return a.view(-1, *[1] * (like.dim() - 1))
