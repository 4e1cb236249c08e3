"""The noise levels of flow models against the published sampler, by value."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from lora_scripts.families.anima import layout as anima
from lora_scripts.families.black_forest.flux2_model import empirical_mu
from lora_scripts.families.chroma.model import SIGMAS as CHROMA
from lora_scripts.families.flux1.model import sigmas as flux1
from lora_scripts.families.krea2.model import TURBO
from lora_scripts.families.sd3.model import sigmas as sd3
from lora_scripts.families.zimage.check import sampler_shift
from lora_scripts.losses.diffusion import Levels, Objective, loss_of
from lora_scripts.losses.flow import Sigmas, Weighting, by_resolution, flow_weight
from lora_scripts.losses.noise import Draws, Timesteps


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
    drawn = Timesteps().at(torch.rand(2000, generator=generator, dtype=torch.float64), None)
    sigma = Sigmas(3.0).at(drawn, tokens=1)
    assert 0 <= sigma.min() < 0.01 and 0.99 < sigma.max() < 1
    # Of a uniform u the median is that of the shift at a half: 3 / 4.
    assert abs(sigma.median().item() - 0.75) < 0.02


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.29, 1.75])
def test_mode_draws_the_levels_that_diffusers_draws(scale: float) -> None:
    """Their scripts count the timesteps from the noisiest on, so their number is 1 less the level."""
    chance = torch.rand(500, generator=torch.Generator().manual_seed(3)).double().sort().values
    again = torch.Generator().manual_seed(3)
    theirs = compute_density_for_timestep_sampling("mode", 500, mode_scale=scale, generator=again)
    ours = Timesteps("mode", mode_scale=scale).at(chance, None)
    torch.testing.assert_close(ours, 1 - theirs.double().sort(descending=True).values, rtol=0, atol=1e-6)
    assert (ours.diff() >= 0).all() and ours[0] >= 0 and ours[-1] < 1  # a quantile stays one: even spreading is kept


def test_mode_by_hand() -> None:
    """q + s (q - sin^2(pi q / 2)): at a quarter the sine's square is (1 - cos 45) / 2; the middle stays."""
    quarter = 0.25 + 1.29 * (0.25 - (1 - math.sqrt(0.5)) / 2)
    quantiles = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    found = Timesteps("mode", mode_scale=1.29).at(quantiles, None).tolist()
    assert found == pytest.approx([0, quarter, 0.5, 1 - quarter], abs=1e-12)
    moved = Timesteps("mode", mode_scale=1.29, shift=3.0, first=200, last=699).at(quantiles, None).tolist()
    assert moved[1] == pytest.approx(0.2 + 0.5 * 3 * quarter / (1 + 2 * quarter), abs=1e-12)


@pytest.mark.parametrize("kind", ["none", "sigma_sqrt", "cosmap"])
def test_weights_of_levels_are_diffusers(kind: Weighting) -> None:
    sigmas = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas  # 1 … 3/1002
    torch.testing.assert_close(flow_weight(sigmas, kind), compute_loss_weighting_for_sd3(kind, sigmas))
    assert flow_weight(torch.zeros(1), kind).isfinite().all()


def test_weights_of_levels_by_hand() -> None:
    sigma = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    assert flow_weight(sigma, "sigma_sqrt").tolist() == pytest.approx([1e6, 16, 4, 1])
    assert flow_weight(sigma, "cosmap").tolist() == pytest.approx(
        [2 / math.pi, 3.2 / math.pi, 4 / math.pi, 2 / math.pi]
    )
    high, quarter = 1 - math.exp(-1 / 2), math.exp(-1 / 8) - math.exp(-1 / 2)
    bell = flow_weight(sigma, "bell")
    assert bell[0] == bell[3] == 0 and (bell[1] / bell[2]).item() == pytest.approx(quarter / high)
    # As ai-toolkit's table, whose mean over a thousand levels is 1, has them at a fifth and in the middle.
    assert flow_weight(torch.tensor([0.2, 0.5]), "bell").tolist() == pytest.approx([0.918, 1.580], abs=2e-3)
    # Its measured one, at levels between the ends of the lines that stand for it.
    inverse = flow_weight(torch.tensor([0.2, 0.4, 0.6, 0.7, 0.9]), "inverse_loss").tolist()
    assert inverse == pytest.approx([0.716, 0.805, 1.083, 1.264, 1.507], rel=0.025)
    even = (torch.arange(4000) + 0.5) / 4000
    assert [flow_weight(even, kind).mean().item() for kind in ("bell", "inverse_loss")] == pytest.approx(
        [1, 1], abs=2e-3
    )


@pytest.mark.parametrize("kind", ["sigma_sqrt", "cosmap", "bell", "inverse_loss"])
def test_a_loss_counts_as_much_as_its_level(kind: Weighting) -> None:
    zero, sigma = torch.zeros(3, 2, 1, 1), torch.tensor([0.1, 0.5, 0.9])
    output, draws, levels = torch.ones_like(zero), Draws(sigma, zero, zero), Levels(1 - sigma, sigma)
    assert torch.equal(loss_of(output, zero, draws, levels, Objective("flow")), torch.ones(3))
    assert torch.equal(
        loss_of(output, zero, draws, levels, Objective("flow", weighting=kind)), flow_weight(sigma, kind)
    )


def test_shifts_of_two_kinds_are_one_formula() -> None:
    constant, exponential = Sigmas(math.e), Sigmas(mu=lambda tokens, steps: 1.0)
    assert constant.factor(1) == exponential.factor(1)


FILE = Path("base.safetensors")
SHIFTED_BY_3 = (1.0, 0.98276, 0.75, 0.13636)
COMFYUI = {
    "FLUX.1 dev": (flux1(FILE, guided=True), 4096, (1.0, 0.98361, 0.75951, 0.14253)),
    "FLUX.1 dev, its node ModelSamplingFlux at 512 x 512": (
        flux1(FILE, guided=True),
        1024,
        (1.0, 0.97273, 0.65249, 0.08993),
    ),
    "FLUX.1 schnell": (flux1(FILE, guided=False), 4096, (1.0, 0.95, 0.5, 0.05)),
    "Chroma": (CHROMA, 4096, (1.0, 0.98361, 0.75951, 0.14253)),
    "FLUX.2, its node Flux2Scheduler": (Sigmas(mu=empirical_mu), 4096, (1.0, 0.99419, 0.90007, 0.3216)),
    "FLUX.2, that node at 512 x 512": (Sigmas(mu=empirical_mu), 1024, (1.0, 0.99232, 0.87173, 0.26345)),
    'Stable Diffusion 3.5, its scheduler "normal"': (sd3(FILE), 4096, (1.0, 0.98187, 0.73097, 0.00893)),
    "Z-Image": (Sigmas(sampler_shift(FILE)), 4096, SHIFTED_BY_3),
    "Anima": (Sigmas(anima.SAMPLER_SHIFT), 4096, SHIFTED_BY_3),
    "Krea 2 Turbo": (TURBO, 4096, (1.0, 0.98361, 0.75951, 0.14253)),
}
"""The first, second, eleventh and last of 20 levels of ComfyUI 0.33.0 (commit 783545f6), run on 26 November 2026."""


@pytest.mark.parametrize("model", COMFYUI)
def test_levels_are_comfyuis_where_docs_say_so(model: str) -> None:
    sigmas, tokens, recorded = COMFYUI[model]
    ours = sigmas.steps(20, tokens)
    assert [ours[n] for n in (0, 1, 10, 19)] == pytest.approx(recorded, rel=0, abs=1e-5)
