"""The noise levels of flow models against the published sampler, by value."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lora_scripts.losses.flow import Sigmas, by_resolution
from lora_scripts.losses.noise import Timesteps


def published(count: int, mu: float | None = None, **settings: object) -> torch.Tensor:
    """diffusers' own, as its pipelines ask for them; without the 0 at the end."""
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    more = {} if mu is None else {"mu": mu}
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / count, count).tolist(), **more)
    return scheduler.sigmas[:-1]


@pytest.mark.parametrize("shift", [1.0, 2.5, 3.0, 6.0])
@pytest.mark.parametrize("count", [1, 8, 28])
def test_a_constant_shift(shift: float, count: int) -> None:
    ours = torch.tensor(Sigmas(shift).steps(count, tokens=4096))
    assert (ours - published(count, shift=shift)).abs().max() < 1e-6
    assert ours[0] == 1.0


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [64, 1024, 4096])
@pytest.mark.parametrize("terminal", [0.0, 0.02])
def test_a_shift_by_resolution_with_and_without_a_terminal(kind: str, tokens: int, terminal: float) -> None:
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    sigmas = Sigmas(mu=by_resolution(), kind=kind, terminal=terminal)  # type: ignore[arg-type]
    # That its `shift` counts for nothing is the trap: the published script shifts with it, and so shifts nothing.
    settings = {"use_dynamic_shifting": True, "shift": 3.0, "time_shift_type": kind, "shift_terminal": terminal or None}
    theirs = published(20, mu, **settings)
    ours = torch.tensor(sigmas.steps(20, tokens))
    assert (ours - theirs).abs().max() < 2e-6
    assert abs(ours[-1].item() - (terminal or theirs[-1].item())) < 2e-6


def test_training_meets_the_levels_of_the_sampler() -> None:
    """All thousand of the published training schedule stand at u = 1/1000 … 1: the first and the last by value."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    u = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    ours = Sigmas(3.0).at(u, tokens=1024)
    assert (ours.float() - scheduler.sigmas).abs().max() < 1e-6
    assert ours[0] == 1.0 and abs(ours[-1].item() - 3 / 1002) < 1e-9
    assert Sigmas(3.0, terminal=0.02).at(torch.zeros(1), 1).item() == pytest.approx(0.02)


def test_continuous_levels_reach_all_of_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([Timesteps().draw(generator, None) for _ in range(2000)])
    sigma = Sigmas(3.0).at(drawn, tokens=1)
    assert 0 <= sigma.min() < 0.01 and 0.99 < sigma.max() < 1
    # Of a uniform u the median is that of the shift at a half: 3 / 4.
    assert abs(sigma.median().item() - 0.75) < 0.02


def test_shifts_of_two_kinds_are_one_formula() -> None:
    constant, exponential = Sigmas(math.e), Sigmas(mu=lambda tokens, steps: 1.0)
    assert constant.factor(1) == exponential.factor(1)
