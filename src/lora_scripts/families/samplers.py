"""Samplers by the names that people know, and the loop that walks from noise to a picture's latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lora_scripts.config.values import did_you_mean
from lora_scripts.errors import UserError
from lora_scripts.families.library import of_diffusers
from lora_scripts.losses.diffusion import Prediction, alphas_cumprod, zero_terminal

DEFAULT = "DPM++ 2M Karras"
FLOW = "Euler"
"""The one sampler of flow models, and their default."""


@dataclass(frozen=True)
class Sampler:
    """A row of the table."""

    name: str
    """As the WebUI wrote it, with the schedule behind it."""
    kind: str
    """The class in diffusers."""
    settings: Mapping[str, object] = field(default_factory=dict)
    noisy: bool = False
    """That it adds noise at each step, which comes from the picture's seed."""
    most_steps: int = 1000

    @property
    def webui(self) -> tuple[str, str]:
        """("DPM++ 2M", "Karras"): what the WebUI's PNGs call "Sampler" and "Schedule type"."""
        plain = self.name.removesuffix(" Karras")
        if plain != self.name:
            return plain, "Karras"
        return plain, "Uniform" if plain in _SCHEDULED else "Automatic"


_MULTISTEP, _KARRAS = "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
# As the published configurations of SD 1.x have them: steps of equal width, counted from 1, nothing clipped.
_LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
_LCM = {"original_inference_steps": 50, "clip_sample": False, "set_alpha_to_one": False}

_SCHEDULED = ("DPM++ 2M", "DPM++ 2M SDE")
"""Samplers of which "Automatic" means a schedule of their own to the WebUI since 1.9: Karras, an exponential one."""
SAMPLERS = (
    Sampler(DEFAULT, _MULTISTEP, _KARRAS),
    Sampler("DPM++ 2M", _MULTISTEP),
    Sampler("DPM++ 2M SDE Karras", _MULTISTEP, {**_SDE, **_KARRAS}, noisy=True),
    Sampler("DPM++ 2M SDE", _MULTISTEP, _SDE, noisy=True),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", noisy=True),
    Sampler("Euler", "EulerDiscreteScheduler"),
    Sampler("Heun", "HeunDiscreteScheduler"),
    Sampler("DDIM", "DDIMScheduler", _LEADING),
    Sampler("UniPC", "UniPCMultistepScheduler"),
    Sampler("LCM", "LCMScheduler", _LCM, noisy=True, most_steps=50),
)
"""DPM++ SDE is not here: the library behind it in diffusers, torchsde, is none of ours."""


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()


def find_sampler(name: str | None, prediction: Prediction = "epsilon", steps: int = 1) -> Sampler:
    """The sampler of that name, also as "euler_a"; None: the usual one. UserError for one that does not fit."""
    if name is None:
        name = FLOW if prediction == "flow" else DEFAULT
    table = {_folded(sampler.name): sampler for sampler in SAMPLERS}
    found = table.get(_folded(name))
    if found is None:
        near = did_you_mean(_folded(name), table)
        listed = ", ".join(sampler.name for sampler in SAMPLERS)
        hint = f"did you mean {table[near].name!r}? There are {listed}" if near else f"there are {listed}"
        raise UserError(f"scheduler {name!r} is not known", hint=hint)
    if prediction == "flow" and found.name != FLOW:
        raise UserError(f"scheduler {found.name!r} cannot sample a base that predicts flow", hint=f"use {FLOW}")
    if steps > found.most_steps:
        raise UserError(f"scheduler {found.name!r} takes at most {found.most_steps} steps, not {steps}")
    return found


def build(sampler: Sampler, prediction: Prediction, *, zero_terminal_snr: bool, schedule: Mapping[str, Any]) -> Any:
    """The scheduler of diffusers. `schedule`: the betas, as diffusers' configurations have them."""
    if prediction == "flow":
        return of_diffusers("FlowMatchEulerDiscreteScheduler")(num_train_timesteps=schedule["num_train_timesteps"])
    settings = {**schedule, **sampler.settings, "prediction_type": "v_prediction" if prediction == "v" else "epsilon"}
    if zero_terminal_snr:
        # The last step must be among those taken (Lin et al. 2023, section 3.3).
        settings["timestep_spacing"] = "trailing"
        if sampler.name == "Heun":  # the one class that does not know how to rescale
            settings["trained_betas"] = _zero_snr_betas(schedule)
        else:
            settings["rescale_betas_zero_snr"] = True
    return of_diffusers(sampler.kind)(**settings)


def _zero_snr_betas(schedule: Mapping[str, Any]) -> list[float]:
    """The last product of (1 - beta) is 2^-24 instead of 0, as in the other classes: sigma must be finite."""
    products = zero_terminal(
        alphas_cumprod(schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"])
    ).double()
    products[-1] = 2.0**-24
    before = torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
    betas: list[float] = (1 - products / before).tolist()
    return betas


@torch.no_grad()
def sample(
    scheduler: Any,
    sampler: Sampler,
    steps: int,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    answer: Callable[[Tensor, Tensor], Tensor],
    *,
    start: Tensor | None = None,
    denoise: float = 1.0,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """Latents [n, c, h, w] from `noise` of that shape, unit variance.

    `answer(x, t)` is the model's, guidance and all, for latents [n, c, h, w] and one timestep. `start`: latents
    [c, h, w] or [n, c, h, w] of pictures to begin with; the last `denoise` of the steps are done, int(steps * denoise).
    `sigmas`: of a flow model, the noise level that each step begins with; None: the scheduler's own.
    `generators`: one for each picture, on the CPU; what a noisy sampler adds comes from them, so that no picture
    depends on its neighbours.
    """
    if sigmas is None:
        scheduler.set_timesteps(steps, device=noise.device)
    else:
        scheduler.set_timesteps(sigmas=list(sigmas), device=noise.device)
    skipped = 0 if start is None else (steps - steps_done(steps, denoise)) * getattr(scheduler, "order", 1)
    times = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "set_begin_index"):  # else it is guessed from the timestep, of which there may be two
        scheduler.set_begin_index(skipped)
    if start is None:
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        mix = scheduler.add_noise if hasattr(scheduler, "add_noise") else scheduler.scale_noise
        x = mix(start.expand_as(noise), noise, times[:1].expand(len(noise)))
    more = {"generator": list(generators)} if sampler.noisy else {}
    for t in times:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(answer(x_in, t), t, x, return_dict=False, **more)[0]
    return x.float()


def steps_done(steps: int, denoise: float) -> int:
    """Of `steps`, how many are done from a picture at a denoising strength; 0.29 * 100 is 29, whatever floats say."""
    return int(round(steps * denoise, 6))
