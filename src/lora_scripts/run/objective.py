"""The loss that a config asks for."""

from __future__ import annotations

from lora_scripts.config.schema import TrainConfig
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.noise import NoiseSettings, Timesteps


def objective_of(c: TrainConfig) -> Objective:
    """Every key of the group "Objective", as the losses take it."""
    return Objective(
        prediction=c.prediction,
        min_snr_gamma=c.min_snr_gamma,
        debiased=c.debiased_estimation,
        zero_terminal_snr=c.zero_terminal_snr,
        measure=c.loss,
        huber_delta=c.huber_delta,
        noise=NoiseSettings(
            c.noise_offset, c.multires_noise_iterations, c.multires_noise_discount, c.input_perturbation
        ),
        timesteps=Timesteps(
            c.timestep_sampling, c.timestep_mean, c.timestep_std, c.timestep_shift, c.timestep_min, c.timestep_max
        ),
    )
