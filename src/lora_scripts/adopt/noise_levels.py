"""How noise levels are drawn for models of flow: kohya's and musubi's arguments.

`get_noisy_model_input_and_timesteps` in sd-scripts' training utilities, musubi's `parser_common.py`.
"""

from __future__ import annotations

from lora_scripts.adopt.found import Found
from lora_scripts.adopt.turns import number, text
from lora_scripts.families.elsewhere import LEVELS_OF_KOHYA
from lora_scripts.families.facts import Facts

_KEYS = ("timestep_sampling", "weighting_scheme", "discrete_flow_shift", "training_shift", "sigmoid_scale")


def of_flow(facts: Facts | None) -> bool:
    """Whether the base predicts flow, as far as that is known."""
    return facts is not None and "pictures" in facts.features and "prediction" not in facts.features


def carry_levels(found: Found, facts: Facts | None, *, musubi: bool) -> None:
    """timestep_sampling and its companions; nothing for models that predict noise, which draw all alike there, too."""
    written = any(key in found.values for key in _KEYS)
    if not of_flow(facts) and not written:
        return
    name = facts.name if facts is not None and not musubi else ""
    usual, usual_shift = LEVELS_OF_KOHYA.get(name, ("sigma", 1.0))
    sampling = found.take("timestep_sampling", text, usual)
    scheme = found.take("weighting_scheme", text, "none")
    key = "training_shift" if "training_shift" in found.values else "discrete_flow_shift"
    shift, scale = found.take(key, number, usual_shift), found.take("sigmoid_scale", number, 1.0)
    mean, std = found.take("logit_mean", number, 0.0), found.take("logit_std", number, 1.0)
    mode = found.take("mode_scale", number, 1.29)
    if sampling == "sigma":
        _by_scheme(found, scheme, mean, std, mode)
    elif sampling == "uniform":
        found.put("timestep_sampling", "uniform", "timestep_sampling")
    elif sampling in ("sigmoid", "shift") or sampling.endswith("_shift"):
        found.put("timestep_sampling", "sigmoid", "timestep_sampling")
        if scale != 1:
            found.put("timestep_std", scale, "sigmoid_scale")
    else:
        found.leave("timestep_sampling", "is not here; noise levels are drawn all alike")
    if sampling.endswith("_shift"):
        return  # by the picture's size, as the base's own sampler: that is what we do without timestep_shift
    if sampling in ("sigma", "shift"):
        found.put("timestep_shift", shift, key)
    else:
        found.put("timestep_shift", 1.0, note=f"{found.why('timestep_sampling', sampling)} is not shifted there")


def _by_scheme(found: Found, scheme: str, mean: float, std: float, mode: float) -> None:
    """How sigma draws: by `weighting_scheme`, which is a weight of the loss, too."""
    if scheme == "logit_normal":
        found.put("timestep_sampling", "logit_normal", "weighting_scheme")
        if mean:
            found.put("timestep_mean", -mean, "logit_mean", note="counted from pure noise there")
        if std != 1:
            found.put("timestep_std", std, "logit_std")
    elif scheme == "mode":
        found.put("timestep_sampling", "mode", "weighting_scheme")
        found.put("timestep_mode_scale", mode, "mode_scale")
    else:
        found.put("timestep_sampling", "uniform", "timestep_sampling", "weighting_scheme")
        if scheme in ("sigma_sqrt", "cosmap"):
            found.put("loss_weighting", scheme, "weighting_scheme")
