"""What is asked of the model: noise, weights, loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import Fault, Fraction, Keys, no_effect

Timestep = Annotated[int, Field(ge=0, le=999)]


class ObjectiveKeys(Keys):
    """What is asked of the model: noise, weights, loss."""

    TITLE: ClassVar[str] = "Objective"
    NEEDS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("min_snr_gamma", "debiased_estimation", "zero_terminal_snr"), "prediction"),
        **dict.fromkeys(("noise_offset", "multires_noise_iterations", "multires_noise_discount"), "pictures"),
        **dict.fromkeys(("loss", "huber_delta", "input_perturbation"), "pictures"),
        **dict.fromkeys(("loss_weighting", "timestep_sampling", "timestep_mean", "timestep_std"), "pictures"),
        **dict.fromkeys(("timestep_mode_scale", "timestep_shift", "timestep_min", "timestep_max"), "pictures"),
    }

    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Min-SNR loss weighting (arXiv:2303.09556); 5 is usual. Without it, every noise level counts the same."""
    debiased_estimation: bool = False
    """Weights of 1 / sqrt(SNR) (arXiv:2310.08442): noisy steps count more. In place of min_snr_gamma."""
    loss_weighting: Literal["none", "sigma_sqrt", "cosmap", "bell", "inverse_loss"] = "none"
    """How much each noise level counts, for models that predict flow. sigma_sqrt, cosmap: as diffusers has them
    (arXiv:2403.03206); bell: the middle most, the ends nothing; inverse_loss: the more, the less a base errs there,
    what ai-toolkit calls weighted. With none every level counts the same."""
    loss: Literal["l2", "huber", "smooth_l1"] = "l2"
    """The measure of an error: squared, or one that lets single large errors (stray pictures) count less."""
    huber_delta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """The error from which huber and smooth_l1 grow in a straight line."""
    noise_offset: Fraction = 0.0
    """Noise that is the same all over a picture, for darker darks and brighter lights; 0.0357 is usual."""
    multires_noise_iterations: Annotated[int, Field(ge=0, le=10)] = 0
    """Layers of coarser noise on top, to the same end; 6 is usual, 0 is none."""
    multires_noise_discount: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """How fast the coarser layers of noise grow weaker."""
    input_perturbation: Fraction = 0.0
    """Further noise in the input only (arXiv:2301.11706), against the model's trust in its own steps; 0.1 is usual."""
    zero_terminal_snr: bool | None = None
    """The noise schedule ends in pure noise (arXiv:2305.08891), with prediction: v. Without it, as the base's file
    says, else not."""
    timestep_sampling: Literal["uniform", "logit_normal", "sigmoid", "mode"] = "uniform"
    """How noise levels are drawn: all alike, or more from the middle (arXiv:2403.03206)."""
    timestep_mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """The mean of logit_normal: above 0, noisier."""
    timestep_std: Annotated[float, Field(gt=0, le=10)] = 1.0
    """The spread of logit_normal, or what other trainers call sigmoid_scale."""
    timestep_mode_scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    """How much more mode draws from the middle than from the ends; below 0, the other way round."""
    timestep_shift: Annotated[float, Field(gt=0, le=100)] | None = None
    """Above 1, noisier levels are drawn more often. Without it, as the base's own sampler has it; 1 where it has
    none."""
    timestep_min: Timestep = 0
    """The lowest noise level that is trained, 0 to 999."""
    timestep_max: Timestep = 999
    """The highest noise level that is trained, 0 to 999."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        prediction, sampling = values.get("prediction"), values.get("timestep_sampling")
        if values.get("loss") == "l2":
            yield no_effect("huber_delta", "loss: huber or smooth_l1", "loss: huber")
        if values.get("multires_noise_iterations") == 0:
            yield no_effect("multires_noise_discount", "multires_noise_iterations", "multires_noise_iterations: 6")
        if sampling in ("uniform", "sigmoid", "mode"):
            yield no_effect("timestep_mean", "timestep_sampling: logit_normal", "timestep_sampling: logit_normal")
        if sampling in ("uniform", "mode"):
            yield no_effect("timestep_std", "timestep_sampling: logit_normal or sigmoid", "timestep_sampling: sigmoid")
        if sampling in ("uniform", "sigmoid", "logit_normal"):
            yield no_effect("timestep_mode_scale", "timestep_sampling: mode", "timestep_sampling: mode")
        if values.get("debiased_estimation") is True and values.get("min_snr_gamma") is not None:
            yield "debiased_estimation", "is a second weight beside min_snr_gamma", "leave one of them out"
        if prediction == "flow":
            for key in ("min_snr_gamma", "debiased_estimation"):
                if values.get(key):
                    yield key, "is made for epsilon and v, not for prediction: flow", f"leave {key} out"
        if prediction in ("epsilon", "v") and values.get("loss_weighting") != "none":
            told = f"is made for flow, not for prediction: {prediction}"
            yield "loss_weighting", told, "leave loss_weighting out, or take min_snr_gamma: 5"
        if values.get("zero_terminal_snr") is True and prediction in ("epsilon", "flow"):
            yield "zero_terminal_snr", f"cannot be with prediction: {prediction}", "add prediction: v, or leave it out"
        low, high = values.get("timestep_min"), values.get("timestep_max")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            for key in ("timestep_min", "timestep_max"):
                yield key, f"the range is empty: {low} to {high}", "swap them"
