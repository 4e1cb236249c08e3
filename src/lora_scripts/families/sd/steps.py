"""What is done with a UNet that answers: the loss of a batch, and the way from noise to latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_scripts.families import samplers
from lora_scripts.families.base import Batch, Conditions, Sampling
from lora_scripts.losses import diffusion
from lora_scripts.losses.noise import Draws

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""Of 1.x and XL alike (v1-inference.yaml, sd_xl_base.yaml)."""
Answer = Callable[[Tensor, Tensor, Conditions], Tensor]
"""(noised latents [n, c, h, w], timesteps [n], conditions [n, ...]) -> the UNet's answer, as the latents."""


def schedule_of(objective: diffusion.Objective) -> diffusion.Schedule:
    """The noise levels that the UNet was made for."""
    return diffusion.discrete(objective.prediction, zero_terminal_snr=objective.zero_terminal_snr)


class Answered(NamedTuple):
    """What was asked, on the device, and what the model said."""

    output: Tensor
    x0: Tensor
    draws: Draws
    levels: diffusion.Levels

    def losses(self, batch: Batch, objective: diffusion.Objective) -> Tensor:
        """Of each picture of the batch, [n] float32."""
        on = self.x0.device
        masks = None if batch.masks is None else batch.masks.to(on)
        each = diffusion.loss_of(self.output, self.x0, self.draws, self.levels, objective, masks, batch.answers)
        return each if batch.weights is None else each * batch.weights.to(on)

    def missed(self, objective: diffusion.Objective) -> Tensor:
        """As `PictureFamily.missed`."""
        wanted = diffusion.target(self.x0, self.draws.noise, self.levels, objective.prediction)
        return wanted.float() - self.output.float()


def answered(
    batch: Batch, objective: diffusion.Objective, draws: Draws, conditions: Conditions, answer: Answer, on: torch.device
) -> Answered:
    """Asks the model of each picture of the batch, as a function of what was drawn."""
    draws, mean, std = draws.to(on), batch.latents["mean"], batch.latents["std"]
    levels, times = schedule_of(objective).at(draws.u, on)
    x0 = mean.to(on) + std.to(on) * draws.posterior
    return Answered(answer(diffusion.add_noise(x0, draws.mixed, levels), times, conditions), x0, draws, levels)


Lead = Callable[[Tensor, Tensor, float], Tensor]
"""(answer to the negative prompt, to the prompt, cfg) -> the answer that is gone after; each [n, c, h, w]."""


def led_away(without: Tensor, with_prompt: Tensor, cfg: float) -> Tensor:
    """From the answer to the negative prompt (Ho & Salimans 2022)."""
    return without + cfg * (with_prompt - without)


def guided(
    answer: Answer, conditions: Conditions, count: int, cfg: float, lead: Lead = led_away
) -> Callable[[Tensor, Tensor], Tensor]:
    """What a sampler asks, for `count` pictures. `conditions`: of the negative prompt and the prompt, [2, ...]; of the
    prompt alone at cfg 1."""
    repeated: Mapping[str, Tensor] = {name: rows.repeat_interleave(count, 0) for name, rows in conditions.items()}

    def ask(x: Tensor, t: Tensor) -> Tensor:
        x = x if cfg == 1 else x.repeat(2, 1, 1, 1)
        out = answer(x, t.expand(len(x)), repeated).float()
        if cfg == 1:
            return out
        without, with_prompt = out.chunk(2)
        return lead(without, with_prompt, cfg)

    return ask


def draw(
    ask: Callable[[Tensor, Tensor], Tensor],
    seeds: Sequence[int],
    sampling: Sampling,
    sampler: samplers.Sampler,
    objective: diffusion.Objective,
    shape: tuple[int, int, int],
    *,
    start: Tensor | None,
    on: torch.device,
) -> Tensor:
    """Latents [n, c, h, w] of n pictures of `shape` (c, h, w), each from the noise of its seed, drawn on the CPU.

    `start`: latents to begin with, instead of noise alone.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn(1, *shape, generator=g) for g in generators]).to(on)
    zero = objective.zero_terminal_snr
    scheduler = samplers.build(sampler, objective.prediction, zero_terminal_snr=zero, schedule=SCHEDULE)
    start = None if start is None else start.to(on)
    denoise = sampling.denoise
    return samplers.sample(scheduler, sampler, sampling.steps, noise, generators, ask, start=start, denoise=denoise)
