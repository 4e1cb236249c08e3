"""The objectives against diffusers' scheduler and against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lora_scripts.families.base import Batch
from lora_scripts.losses import diffusion
from lora_scripts.losses.diffusion import Draws, Objective

SCHEDULER = DDPMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
)
T = torch.tensor([0, 1, 37, 500, 998, 999])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_schedule_is_diffusers() -> None:
    ours, theirs = diffusion.alphas_cumprod(), SCHEDULER.alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0)
    assert ours.dtype == torch.float32 and len(ours) == 1000
    assert ours[0].item() == pytest.approx(1 - 0.00085, abs=1e-7)


def test_noised_latents_and_velocity_are_diffusers() -> None:
    x0, noise = normal(6, 4, 3, 5), normal(6, 4, 3, 5, seed=1)
    a = diffusion.alphas_cumprod()[T]
    torch.testing.assert_close(diffusion.add_noise(x0, noise, a), SCHEDULER.add_noise(x0, noise, T), rtol=0, atol=2e-6)
    v = diffusion.target(x0, noise, a, "v")
    torch.testing.assert_close(v, SCHEDULER.get_velocity(x0, noise, T), rtol=0, atol=2e-6)
    assert diffusion.target(x0, noise, a, "epsilon") is noise


@pytest.mark.parametrize(
    ("a", "gamma", "epsilon", "v"),
    [
        (0.9, 5.0, 5 / 9, 5 / 10),  # SNR 9, above gamma
        (0.5, 5.0, 1.0, 1 / 2),  # SNR 1
        (0.2, 5.0, 1.0, 0.25 / 1.25),  # SNR 1/4
        (0.2, 0.1, 0.4, 0.1 / 1.25),
    ],
)
def test_min_snr_weight_by_hand(a: float, gamma: float, epsilon: float, v: float) -> None:
    assert diffusion.min_snr_weight(torch.tensor([a]), gamma, "epsilon").item() == pytest.approx(epsilon, rel=1e-6)
    assert diffusion.min_snr_weight(torch.tensor([a]), gamma, "v").item() == pytest.approx(v, rel=1e-6)


def test_min_snr_weight_at_timesteps() -> None:
    alphas = SCHEDULER.alphas_cumprod.double()
    weights = diffusion.min_snr_weight(diffusion.alphas_cumprod()[T], 5.0, "epsilon")
    for t, weight in zip(T.tolist(), weights.tolist(), strict=True):
        snr = float(alphas[t] / (1 - alphas[t]))
        assert weight == pytest.approx(min(snr, 5.0) / snr, rel=1e-3)
    assert weights[0] < 0.01 and weights[-1] == 1


def test_loss_by_hand() -> None:
    output = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    x0 = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 0.0]]]])
    noise = torch.tensor([[[[1.0, 0.0]]], [[[3.0, 1.0]]]])
    draws, a = Draws(torch.tensor([0, 0]), noise, torch.zeros_like(noise)), torch.tensor([0.5, 0.8])
    plain = diffusion.loss_of(output, x0, draws, a, Objective())
    assert plain.tolist() == [(0 + 4) / 2, (9 + 1) / 2] and plain.dtype == torch.float32
    weighted = diffusion.loss_of(output, x0, draws, a, Objective(min_snr_gamma=2.0))
    assert weighted.tolist() == pytest.approx([2 * 1, 5 * 2 / 4], rel=1e-6)
    v = diffusion.loss_of(output, x0, draws, a, Objective("v"))
    root = math.sqrt(0.5)
    first = ((1 - root) ** 2 + (2 + root) ** 2) / 2
    second = ((math.sqrt(0.8) * 3 - math.sqrt(0.2) * 2) ** 2 + 0.8) / 2
    assert v.tolist() == pytest.approx([first, second], rel=1e-6)


def test_an_items_draws_do_not_depend_on_its_neighbours() -> None:
    pair = diffusion.draw((2, 4, 3, 5), generators(1, 2), 0.1)
    alone = diffusion.draw((1, 4, 3, 5), generators(2), 0.1)
    assert pair.timesteps.shape == (2,) and pair.noise.shape == pair.posterior.shape == (2, 4, 3, 5)
    for name in ("timesteps", "noise", "posterior"):
        assert torch.equal(getattr(pair, name)[1:], getattr(alone, name))
    assert not torch.equal(pair.noise[0], pair.noise[1])
    assert not torch.equal(alone.noise, alone.posterior)


def test_draws_are_standard_normal_and_timesteps_uniform() -> None:
    draws = diffusion.draw((4000, 2, 2, 2), generators(*range(4000)), 0.0)
    for x in (draws.noise, draws.posterior):
        assert abs(x.mean().item()) < 0.02 and x.std().item() == pytest.approx(1, abs=0.02)
    assert abs((draws.noise * draws.posterior).mean().item()) < 0.02
    t = draws.timesteps
    assert t.min() < 5 and t.max() > 994 and t.max() < 1000
    assert all(abs(n / 4000 - 0.1) < 0.02 for n in torch.bincount(t // 100, minlength=10).tolist())


def test_noise_offset_shifts_each_channel_as_a_whole() -> None:
    shape, seeds = (500, 4, 3, 5), range(500)
    plain = diffusion.draw(shape, generators(*seeds), 0.0)
    moved = diffusion.draw(shape, generators(*seeds), 0.3)
    assert torch.equal(plain.timesteps, moved.timesteps) and torch.equal(plain.posterior, moved.posterior)
    shift = moved.noise - plain.noise
    torch.testing.assert_close(shift, shift[..., :1, :1].expand(shape), rtol=0, atol=1e-6)
    one = shift[..., 0, 0] / 0.3  # [500, 4]
    assert abs(one.mean().item()) < 0.1 and one.std().item() == pytest.approx(1, abs=0.1)
    assert abs((one[:, 0] * one[:, 1]).mean().item()) < 0.2


@pytest.mark.parametrize("objective", [Objective(), Objective("v", 5.0, 0.1)], ids=["epsilon", "v"])
def test_the_familys_loss_is_the_textbooks(family: Any, objective: Objective) -> None:
    """The latents are drawn from the posterior, noised by diffusers' scheduler, and compared with its target."""
    mean, std, states = normal(2, 4, 8, 8), 5 + normal(2, 4, 8, 8, seed=1).abs(), normal(2, 77, 16, seed=2)
    batch = Batch(mean, std, ["", ""], states, ["a", "b"], generators(3, 4))
    with torch.no_grad():
        total, count = family.loss(batch, objective)
        draws = diffusion.draw((2, 4, 8, 8), generators(3, 4), objective.noise_offset)
        x0 = mean + std * draws.posterior
        output = family.predict(SCHEDULER.add_noise(x0, draws.noise, draws.timesteps), draws.timesteps, states)
    velocity = objective.prediction == "v"
    wanted = SCHEDULER.get_velocity(x0, draws.noise, draws.timesteps) if velocity else draws.noise
    each = (output - wanted).square().mean((1, 2, 3))
    if objective.min_snr_gamma:
        a = SCHEDULER.alphas_cumprod[draws.timesteps]
        snr = a / (1 - a)
        each = each * snr.clamp(max=5.0) / (snr + 1)
    assert count == 2
    assert total.item() == pytest.approx(each.sum().item(), rel=1e-4)
    flat = Batch(mean, torch.zeros_like(std), ["", ""], states, ["a", "b"], generators(3, 4))
    assert family.loss(flat, objective)[0].item() != pytest.approx(total.item(), rel=1e-3)  # std is used
