"""The objectives against diffusers' scheduler and against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lora_scripts.families.base import Batch
from lora_scripts.losses import diffusion
from lora_scripts.losses.diffusion import Levels, Objective
from lora_scripts.losses.noise import Draws, NoiseSettings, Timesteps, at_level, draw, middle

SCHEDULER = DDPMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
)
T = torch.tensor([0, 1, 37, 500, 998, 999])
RICH = NoiseSettings(offset=0.1, multires_iterations=3, perturbation=0.2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_schedule_is_diffusers() -> None:
    ours, theirs = diffusion.alphas_cumprod(), SCHEDULER.alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0)
    assert ours.dtype == torch.float32 and len(ours) == 1000
    assert ours[0].item() == pytest.approx(1 - 0.00085, abs=1e-7)


def timesteps(u: Tensor) -> Tensor:
    """int64: those of a thousand that levels u in their middle stand for."""
    assert u.dtype == torch.float64
    times = (u * 1000).long()
    assert torch.equal(u, middle(times, 1000))
    return times


def levels_of(*a: float) -> Levels:
    alphas = torch.tensor(a)
    return Levels(alphas.sqrt(), (1 - alphas).sqrt())


def test_noised_latents_and_velocity_are_diffusers() -> None:
    x0, e = normal(6, 4, 3, 5), normal(6, 4, 3, 5, seed=1)
    levels = diffusion.schedule("epsilon").at(T)
    torch.testing.assert_close(diffusion.add_noise(x0, e, levels), SCHEDULER.add_noise(x0, e, T), rtol=0, atol=2e-6)
    v = diffusion.target(x0, e, levels, "v")
    torch.testing.assert_close(v, SCHEDULER.get_velocity(x0, e, T), rtol=0, atol=2e-6)
    assert diffusion.target(x0, e, levels, "epsilon") is e


def test_flow_is_diffusers_straight_line() -> None:
    x0, e = normal(6, 4, 3, 5), normal(6, 4, 3, 5, seed=1)
    flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    wanted = flow.scale_noise(x0, (T + 1).float(), e)  # its timesteps are 1000 sigma
    torch.testing.assert_close(diffusion.add_noise(x0, e, diffusion.schedule("flow").at(T)), wanted, rtol=0, atol=2e-6)
    # One Euler step of size sigma along the true velocity leads back to the picture.
    levels = diffusion.schedule("flow").at(T)
    x_t, v = diffusion.add_noise(x0, e, levels), diffusion.target(x0, e, levels, "flow")
    torch.testing.assert_close(x_t - (T + 1).view(-1, 1, 1, 1) / 1000 * v, x0, rtol=0, atol=2e-6)


def test_zero_terminal_snr_is_diffusers_and_ends_in_pure_noise() -> None:
    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ).alphas_cumprod
    ours = diffusion.schedule("v", zero_terminal_snr=True)
    torch.testing.assert_close(ours.signal.square(), theirs, rtol=1e-4, atol=1e-7)
    assert ours.signal[-1] == 0 and ours.noise[-1] == 1
    assert diffusion.min_snr_weight(ours.snr, 5.0, "v").isfinite().all()
    plain = diffusion.schedule("v")
    assert plain.signal[-1] > 0.06 and ours.signal[0] == pytest.approx(plain.signal[0].item(), rel=1e-6)


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
    snr = levels_of(a).snr
    assert diffusion.min_snr_weight(snr, gamma, "epsilon").item() == pytest.approx(epsilon, rel=1e-6)
    assert diffusion.min_snr_weight(snr, gamma, "v").item() == pytest.approx(v, rel=1e-6)


def test_min_snr_weight_at_timesteps() -> None:
    alphas = SCHEDULER.alphas_cumprod.double()
    weights = diffusion.min_snr_weight(diffusion.schedule("epsilon").at(T).snr, 5.0, "epsilon")
    for t, weight in zip(T.tolist(), weights.tolist(), strict=True):
        snr = float(alphas[t] / (1 - alphas[t]))
        assert weight == pytest.approx(min(snr, 5.0) / snr, rel=1e-3)
    assert weights[0] < 0.01 and weights[-1] == 1


def test_debiased_weight_by_hand() -> None:
    snr = torch.tensor([4.0, 0.25, 1e6])
    assert diffusion.debiased_weight(snr, "epsilon").tolist() == pytest.approx([0.5, 2.0, 1000**-0.5])
    # The squared error of v is (SNR + 1) times that of the picture, that of epsilon SNR times: so the losses agree.
    both = [diffusion.debiased_weight(snr[:2], p) * f for p, f in (("epsilon", snr[:2]), ("v", snr[:2] + 1))]
    torch.testing.assert_close(*both)


def test_loss_by_hand() -> None:
    output = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    x0 = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 0.0]]]])
    noise = torch.tensor([[[[1.0, 0.0]]], [[[3.0, 1.0]]]])
    draws, a = Draws(middle(torch.tensor([0, 0]), 1000), noise, torch.zeros_like(noise)), levels_of(0.5, 0.8)
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
    pair = draw((2, 4, 3, 5), generators(1, 2), noise=RICH)
    alone = draw((1, 4, 3, 5), generators(2), noise=RICH)
    assert pair.u.shape == (2,) and pair.noise.shape == pair.posterior.shape == (2, 4, 3, 5)
    for name in ("u", "noise", "posterior", "perturbation"):
        assert torch.equal(getattr(pair, name)[1:], getattr(alone, name))
    assert not torch.equal(pair.noise[0], pair.noise[1])
    assert not torch.equal(alone.noise, alone.posterior)


def test_draws_are_standard_normal_and_timesteps_uniform() -> None:
    draws = draw((4000, 2, 2, 2), generators(*range(4000)))
    for x in (draws.noise, draws.posterior):
        assert abs(x.mean().item()) < 0.02 and x.std().item() == pytest.approx(1, abs=0.02)
    assert abs((draws.noise * draws.posterior).mean().item()) < 0.02
    t = timesteps(draws.u)
    assert t.min() < 5 and t.max() > 994 and t.max() < 1000
    assert all(abs(n / 4000 - 0.1) < 0.02 for n in torch.bincount(t // 100, minlength=10).tolist())


def test_noise_offset_shifts_each_channel_as_a_whole() -> None:
    shape, seeds = (500, 4, 3, 5), range(500)
    plain = draw(shape, generators(*seeds))
    moved = draw(shape, generators(*seeds), noise=NoiseSettings(offset=0.3))
    assert torch.equal(plain.u, moved.u) and torch.equal(plain.posterior, moved.posterior)
    shift = moved.noise - plain.noise
    torch.testing.assert_close(shift, shift[..., :1, :1].expand(shape), rtol=0, atol=1e-6)
    one = shift[..., 0, 0] / 0.3  # [500, 4]
    assert abs(one.mean().item()) < 0.1 and one.std().item() == pytest.approx(1, abs=0.1)
    assert abs((one[:, 0] * one[:, 1]).mean().item()) < 0.2


def test_multires_noise_is_coarse_and_of_unit_variance() -> None:
    shape, seeds = (200, 4, 16, 16), range(200)
    plain = draw(shape, generators(*seeds)).noise
    rich = draw(shape, generators(*seeds), noise=NoiseSettings(multires_iterations=4, multires_discount=0.8)).noise
    assert rich.flatten(1).std(1).sub(1).abs().max() < 1e-3
    # Neighbouring pixels, and whole quarters of a picture, now move together.
    near = [(x[..., 1:] * x[..., :-1]).mean().item() for x in (plain, rich)]
    assert abs(near[0]) < 0.01 and near[1] > 0.3
    quarter = [torch.nn.functional.avg_pool2d(x, 8).std().item() for x in (plain, rich)]
    assert quarter[0] == pytest.approx(1 / 8, rel=0.1) and quarter[1] > 0.35


def test_input_perturbation_is_in_the_input_and_not_in_the_target(family: Any) -> None:
    mean, states = normal(1, 4, 8, 8), normal(1, 77, 16, seed=2)
    batch = Batch({"mean": mean, "std": torch.zeros_like(mean)}, [""], {"states": states}, ["a"], generators(3))
    draws = draw((1, 4, 8, 8), generators(3), noise=NoiseSettings(perturbation=0.5))
    assert draws.perturbation is not None and draws.perturbation.std().item() == pytest.approx(0.5, rel=0.15)
    with torch.no_grad():
        got = family.losses(batch, Objective(), draws)
        x_t = SCHEDULER.add_noise(mean, draws.noise + draws.perturbation, timesteps(draws.u))
        left = draws.noise - family.predict(x_t, timesteps(draws.u), states)
    assert got.item() == pytest.approx(left.square().mean().item(), rel=1e-4)
    torch.testing.assert_close(family.missed(batch, Objective(), draws), left)


DISTRIBUTIONS = [
    Timesteps("logit_normal", mean=0.5, std=0.8),
    Timesteps("sigmoid", mean=9.0, std=1.3),
    Timesteps("uniform", shift=3.0),
    Timesteps("logit_normal", shift=0.5, first=200, last=699),
]


def name_of(settings: Timesteps) -> str:
    return f"{settings.sampling}-{settings.shift}"


@pytest.mark.parametrize("levels", [1000, None], ids=["timesteps", "continuous"])
@pytest.mark.parametrize("settings", [*DISTRIBUTIONS, Timesteps(first=100, last=299)], ids=name_of)
def test_timesteps_follow_their_distribution(settings: Timesteps, levels: int | None) -> None:
    """The share below a few levels, against the distribution function worked out by hand."""
    u = settings.at(torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64), levels)
    t = timesteps(u).double() if levels else 1000 * u
    assert u.dtype == torch.float64 and t.min() >= settings.first and t.max() < settings.last + 1
    if levels is None:
        assert len(set(u.tolist())) == 4000 and ((1000 * u) % 1).std().item() == pytest.approx(12**-0.5, rel=0.05)
    for share in (0.2, 0.5, 0.8):
        below = settings.first + share * (settings.last + 1 - settings.first)
        u = share / (settings.shift - (settings.shift - 1) * share)  # the shift undone
        if settings.sampling != "uniform":
            mean = settings.mean if settings.sampling == "logit_normal" else 0.0
            u = 0.5 * (1 + math.erf((math.log(u / (1 - u)) - mean) / settings.std / math.sqrt(2)))
        assert (t < below).double().mean().item() == pytest.approx(u, abs=0.03)


def test_a_range_of_timesteps_is_uniform_and_closed() -> None:
    t = timesteps(Timesteps(first=10, last=13).at(torch.arange(2000, dtype=torch.float64) / 2000))
    assert torch.bincount(t, minlength=14)[10:].tolist() == [500] * 4 and t.min() == 10


@pytest.mark.parametrize("settings", DISTRIBUTIONS, ids=name_of)
def test_a_quantile_is_the_level_below_which_so_many_are(settings: Timesteps) -> None:
    """Against the standard library's normal distribution, and the shift by hand."""
    quantiles = [0.001, 0.1, 0.25, 0.5, 0.9, 0.999]
    found = settings.at(torch.tensor(quantiles, dtype=torch.float64), None).tolist()
    for q, u in zip(quantiles, found, strict=True):
        if settings.sampling != "uniform":
            mean = settings.mean if settings.sampling == "logit_normal" else 0.0
            q = 1 / (1 + math.exp(-NormalDist(mean, settings.std).inv_cdf(q)))
        q = settings.shift * q / (1 + (settings.shift - 1) * q)
        assert u == pytest.approx((settings.first + q * (settings.last + 1 - settings.first)) / 1000, rel=1e-9)


@pytest.mark.parametrize("levels", [1000, 4, None])
def test_a_level_never_leaves_its_range(levels: int | None) -> None:
    """Not even where a sigmoid in float64 is 1, or 0."""
    for settings in (Timesteps("sigmoid", std=60.0), Timesteps("sigmoid", std=60.0, first=250, last=749)):
        u = settings.at(torch.linspace(0, math.nextafter(1.0, 0.0), 200, dtype=torch.float64), levels)
        assert u.min() >= settings.first / 1000 and u.max() < (settings.last + 1) / 1000
        assert (u > (settings.last + 1) / 1000 - 1e-9).any() == (levels is None)


@pytest.mark.parametrize("steps", [4, 28, 1000])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_a_level_in_the_middle_of_a_timestep_is_that_timestep(prediction: Any, steps: int) -> None:
    t, cpu = torch.arange(steps), torch.device("cpu")
    levels, told = diffusion.discrete(prediction, steps=steps).at(middle(t, steps), cpu)
    wanted = diffusion.schedule(prediction, steps=steps)
    assert torch.equal(levels.signal, wanted.signal) and torch.equal(levels.noise, wanted.noise)
    assert torch.equal(told, t + (prediction == "flow")) and told.dtype == torch.int64
    edges = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    levels, _ = diffusion.discrete(prediction, steps=steps).at(edges, cpu)
    assert torch.equal(levels.signal, wanted.signal[[0, -1]])


def test_bounds_in_thousandths_are_bounds_of_any_number_of_levels() -> None:
    assert [at_level(t, 1000) for t in range(1001)] == list(range(1001))
    for settings in (Timesteps(first=250, last=749), Timesteps("logit_normal", first=250, last=749)):
        u = settings.at(torch.arange(300, dtype=torch.float64) / 300, 4)
        assert set(u.tolist()) == {0.375, 0.625}


def test_huber_and_smooth_l1_by_hand() -> None:
    output, wanted = torch.tensor([[0.05, 3.0]]), torch.zeros(1, 2)
    draws = Draws(middle(torch.tensor([0]), 1000), wanted, wanted)
    levels = levels_of(0.5)
    huber = diffusion.loss_of(output, wanted, draws, levels, Objective(measure="huber", huber_delta=0.2))
    assert huber.item() == pytest.approx((0.05**2 + 2 * 0.2 * (3 - 0.1)) / 2, rel=1e-5)
    smooth = diffusion.loss_of(output, wanted, draws, levels, Objective(measure="smooth_l1", huber_delta=0.2))
    assert smooth.item() == pytest.approx((0.05**2 / 0.4 + 3 - 0.1) / 2, rel=1e-5)


def test_a_mask_says_how_much_each_place_counts() -> None:
    output = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]])
    zero = torch.zeros_like(output)
    draws, levels = Draws(middle(torch.tensor([0]), 1000), zero, zero), levels_of(0.5)

    def loss(*mask: float) -> float:
        return diffusion.loss_of(output, zero, draws, levels, Objective(), torch.tensor([[[mask]]])).item()

    assert loss(1.0, 1.0) == pytest.approx(21 / 4) and loss(1.0, 0.0) == pytest.approx(1 / 2)
    assert loss(0.5, 0.5) == pytest.approx(21 / 4) and loss(1.0, 0.5) == pytest.approx((1 + 10) / 3)
    assert loss(0.0, 0.0) == 0


def test_weights_of_pictures_multiply_their_losses(family: Any) -> None:
    mean, states = normal(2, 4, 8, 8), normal(2, 77, 16, seed=2)
    draws = draw((2, 4, 8, 8), generators(3, 4))
    latents = {"mean": mean, "std": torch.zeros_like(mean)}
    batch = Batch(latents, ["", ""], {"states": states}, ["a", "b"], generators(3, 4))
    weighted = replace(batch, weights=torch.tensor([1.0, 0.25]))
    with torch.no_grad():
        plain, less = family.losses(batch, Objective(), draws), family.losses(weighted, Objective(), draws)
    torch.testing.assert_close(less, plain * torch.tensor([1.0, 0.25]))


@pytest.mark.parametrize(
    "objective", [Objective(), Objective("v", 5.0, noise=NoiseSettings(offset=0.1))], ids=["epsilon", "v"]
)
def test_the_familys_loss_is_the_textbooks(family: Any, objective: Objective) -> None:
    """The latents are drawn from the posterior, noised by diffusers' scheduler, and compared with its target."""
    mean, std, states = normal(2, 4, 8, 8), 5 + normal(2, 4, 8, 8, seed=1).abs(), normal(2, 77, 16, seed=2)
    batch = Batch({"mean": mean, "std": std}, ["", ""], {"states": states}, ["a", "b"], generators(3, 4))
    with torch.no_grad():
        total, count = family.loss(batch, objective)
        draws = draw((2, 4, 8, 8), generators(3, 4), noise=objective.noise)
        x0, t = mean + std * draws.posterior, timesteps(draws.u)
        output = family.predict(SCHEDULER.add_noise(x0, draws.noise, t), t, states)
    velocity = objective.prediction == "v"
    wanted = SCHEDULER.get_velocity(x0, draws.noise, t) if velocity else draws.noise
    each = (output - wanted).square().mean((1, 2, 3))
    if objective.min_snr_gamma:
        a = SCHEDULER.alphas_cumprod[t]
        snr = a / (1 - a)
        each = each * snr.clamp(max=5.0) / (snr + 1)
    assert count == 2
    assert total.item() == pytest.approx(each.sum().item(), rel=1e-4)
    flat = replace(batch, latents={"mean": mean, "std": torch.zeros_like(std)}, generators=generators(3, 4))
    assert family.loss(flat, objective)[0].item() != pytest.approx(total.item(), rel=1e-3)  # std is used
