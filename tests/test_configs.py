"""What only the base's family can judge of a config: told with the others, with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from lora_scripts.config import types
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families import table
from lora_scripts.families.table import by_name
from lora_scripts.run.configs import load_config


@pytest.fixture
def config(base: Path, data: Path, tmp_path: Path) -> Path:
    return tiny.write_config(tmp_path, base_model=base, train_data_dir=data)


def faults(config: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        load_config(config, overrides)
    error = raised.value
    return [str(one) for one in (error.errors if isinstance(error, UserErrors) else [error])]


def test_a_misspelt_group_of_layers(config: Path) -> None:
    with config.open("a") as file:
        file.write("targets: [conv, attentoin]\n")
    (told,) = faults(config)
    line = len(config.read_text().splitlines())
    assert told.startswith(
        f"{config.as_posix()}:{line}: targets: item 2 must be attention, feed_forward, conv, a block "
    )
    assert told.endswith('or a pattern with *, not "attentoin"; did you mean attention?')
    assert load_config(config, ["targets=[OUT03, MID, 'unet.up_blocks.*.attn1.to_q', {match: conv, rank: 2}]"])
    assert "item 1 must be" in faults(config, "targets=[{match: OUT12, rank: 2}]")[0]


def test_zero_terminal_snr_on_a_base_that_predicts_epsilon(config: Path) -> None:
    """The base says what it predicts where the config does not."""
    (told,) = faults(config, "zero_terminal_snr=true")
    assert "zero_terminal_snr=true: cannot be with prediction: epsilon; add prediction: v" in told
    assert load_config(config, ["zero_terminal_snr=true", "prediction=v"]).zero_terminal_snr


def test_weights_of_flow_on_a_base_that_predicts_epsilon(config: Path) -> None:
    (told,) = faults(config, "loss_weighting=bell")
    assert told.endswith(
        "loss_weighting=bell: is made for flow, not for prediction: epsilon; "
        "leave loss_weighting out, or take min_snr_gamma: 5"
    )
    (told,) = faults(config, "loss_weighting=weighted")
    assert "loss_weighting=weighted: must be one of none, sigma_sqrt, cosmap, bell, inverse_loss" in told
    assert load_config(config, ["loss_weighting=bell", "prediction=flow"]).loss_weighting == "bell"


@pytest.mark.parametrize(("key", "sampling"), [("mode_scale", "sigmoid"), ("std", "mode"), ("mean", "mode")])
def test_a_key_of_another_way_of_drawing_levels(config: Path, key: str, sampling: str) -> None:
    (told,) = faults(config, f"timestep_{key}=0.5", f"timestep_sampling={sampling}")
    assert f"timestep_{key}=0.5: has no effect without timestep_sampling: " in told
    assert load_config(config, ["timestep_sampling=mode", "timestep_mode_scale=0.5"]).timestep_mode_scale == 0.5


def test_keys_for_other_kinds_of_models_are_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a family without CLIP and without a choice of what it predicts."""
    import dataclasses

    own = by_name("sd1")
    bare = dataclasses.replace(own, features=own.features - {"clip", "prediction"})
    monkeypatch.setattr(table, "FAMILIES", (bare,))
    told = faults(config, "clip_skip=2", "min_snr_gamma=5", "flip=true")
    words = types.FEATURES
    assert len(told) == 2 and all("leave it out" in line for line in told)
    assert f"clip_skip=2: is for {words['clip']}, and base_model is {own.checkpoint.words}" in told[0]
    assert f"min_snr_gamma=5: is for {words['prediction']}" in told[1]


def test_without_a_base_nothing_is_judged(config: Path, tmp_path: Path) -> None:
    (told,) = faults(config, f"base_model={tmp_path / 'none.safetensors'}", "targets=[attentoin]")
    assert "none.safetensors does not exist" in told
