"""The schedules by hand, and AdamW against its update written out in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lora_scripts.formats import io
from lora_scripts.formats.io import Buffer
from lora_scripts.train.average import Ema, averaged
from lora_scripts.train.optim import Group, Rates, Schedule, build_optimizer, set_rates
from lora_scripts.train.state import RunState, pack, restore_optimizer, unpack

SCHEDULES = ["constant", "linear", "cosine", "cosine_restarts", "polynomial"]
NAMES = ["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free"]


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        # total 10, warm-up 2: 1/2 and 1, then 8 steps down from 1
        ("constant", {0: 0.5, 1: 1, 2: 1, 6: 1, 9: 1}),
        ("linear", {0: 0.5, 1: 1, 2: 1, 6: 0.5, 9: 1 / 8}),
        ("polynomial", {0: 0.5, 1: 1, 2: 1, 6: 1 / 8, 9: 1 / 512}),
        # two curves of four steps
        ("cosine_restarts", {0: 0.5, 2: 1, 4: 0.5, 5: 0.5 * (1 - math.sqrt(0.5)), 6: 1, 8: 0.5}),
        (
            "cosine",
            {0: 0.5, 1: 1, 2: 1, 4: 0.5 * (1 + math.sqrt(0.5)), 6: 0.5, 9: 0.5 * (1 + math.cos(7 * math.pi / 8))},
        ),
    ],
)
def test_schedules_by_hand(schedule: Schedule, wanted: dict[int, float]) -> None:
    rates = Rates(schedule, 2, cycles=2, power=3)
    assert {step: rates.share(step, 10) for step in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_has_a_rate(schedule: Schedule) -> None:
    assert Rates(schedule).share(0, 10) == Rates(schedule).share(0, 1) == 1
    assert all(0 < Rates(schedule, w).share(step, 10) <= 1 for w in (0, 1, 9, 10, 30) for step in range(10))


def test_adamw_is_the_papers_update() -> None:
    """Algorithm 2 of Loshchilov & Hutter 2019 with torch's defaults, over five steps and two groups."""
    g = torch.Generator().manual_seed(0)
    starts = [torch.randn(5, 3, generator=g), torch.randn(7, generator=g)]
    parameters = [nn.Parameter(p.clone()) for p in starts]
    optimizer = build_optimizer("adamw", [Group("a", [parameters[0]], 0.1), Group("b", [parameters[1]], 0.02)], 0.05)
    hand = [
        [p.double(), torch.zeros_like(p, dtype=torch.float64), torch.zeros_like(p, dtype=torch.float64)] for p in starts
    ]
    for step in range(1, 6):
        share = 1.0 / step
        set_rates(optimizer, share)
        for p, row, peak in zip(parameters, hand, (0.1, 0.02), strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            grad, lr = p.grad.double(), peak * share
            row[0] = row[0] * (1 - lr * 0.05)
            row[1] = 0.9 * row[1] + 0.1 * grad
            row[2] = 0.999 * row[2] + 0.001 * grad**2
            row[0] = row[0] - lr * (row[1] / (1 - 0.9**step)) / ((row[2] / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
    for p, row in zip(parameters, hand, strict=True):
        torch.testing.assert_close(p.detach().double(), row[0], rtol=1e-5, atol=1e-6)
    assert [group["name"] for group in optimizer.param_groups] == ["a", "b"]
    assert optimizer.defaults["fused"]


def walk(name: str, steps: int, lr: float = 0.05) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """`steps` of an optimizer on a bowl, |x - 1|^2 over 64 x 64 numbers that begin at 0."""
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    p = nn.Parameter(torch.zeros(64, 64))
    optimizer = build_optimizer(name, [Group("a", [p], 1.0 if name == "prodigy" else lr)], 0.0)
    for _ in range(steps):
        p.grad = 2 * (p.detach() - 1)
        optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(name: str) -> None:
    p, optimizer = walk(name, 100)
    with averaged([p], optimizer, None):
        assert (p - 1).abs().max().item() < 0.5
    assert optimizer.param_groups[0]["name"] == "a" and optimizer.param_groups[0]["peak"] in (0.05, 1.0)


def test_lion_is_the_papers_update() -> None:
    """Algorithm 2 of Chen et al. 2023: the sign of an interpolation, then the momentum."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = build_optimizer("lion", [Group("a", [p], 0.1)], 0.5)
    m, x = torch.zeros(3), p.detach().clone()
    for grad in (torch.tensor([1.0, -1.0, 0.2]), torch.tensor([-3.0, -1.0, 0.1]), torch.tensor([0.5, 2.0, -4.0])):
        p.grad = grad.clone()
        optimizer.step()
        x = x * (1 - 0.1 * 0.5) - 0.1 * (0.9 * m + 0.1 * grad).sign()
        m = 0.99 * m + 0.01 * grad
    torch.testing.assert_close(p.detach(), x)


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_optimizer_goes_on_bit_for_bit(name: str) -> None:
    """Three steps, packed to bytes and unpacked into a new optimizer, then three more: equal to six at once."""
    whole, _ = walk(name, 6)
    half, first = walk(name, 3)
    state = RunState(3, 6, {}, {}, {})
    files = {file: b"".join(pieces) for file, pieces in pack(state, {"p": half}, first).items()}
    numbers = json.loads(files["run.json"])["optimizer"]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in safetensors.torch.load(files["optimizer.safetensors"]).items():
        moments.setdefault(int(key.partition(".")[0]), {})[key.partition(".")[2]] = value
    p = nn.Parameter(safetensors.torch.load(files["lora.safetensors"])["p"])
    fresh = build_optimizer(name, [Group("a", [p], 1.0 if name == "prodigy" else 0.05)], 0.0)
    restore_optimizer(fresh, moments, numbers)
    for _ in range(3):
        p.grad = 2 * (p.detach() - 1)
        fresh.step()
    assert torch.equal(p, whole) and not torch.equal(p, half)


def test_the_state_of_a_resumed_run_has_the_bytes_of_one_that_never_stopped(tmp_path: Path) -> None:
    """adafactor keeps plain numbers of each of more than ten parameters, whose names have another order than they."""

    def begun() -> torch.optim.Optimizer:
        return build_optimizer("adafactor", [Group("a", [nn.Parameter(torch.zeros(4, 3)) for _ in range(12)], 0.1)], 0)

    def packed(optimizer: torch.optim.Optimizer) -> dict[str, list[Buffer]]:
        return pack(RunState(1, 2, {}, {}, {}), {}, optimizer)

    def step(optimizer: torch.optim.Optimizer) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad = 2 * (p.detach() - 1)
        optimizer.step()

    through, fresh = begun(), begun()
    step(through)
    io.write_folder(tmp_path / "state", packed(through))
    kept, _, moments = unpack(tmp_path / "state")
    restore_optimizer(fresh, moments, kept.optimizer)
    one, two = packed(through), packed(fresh)
    assert {file: b"".join(one[file]) for file in one} == {file: b"".join(two[file]) for file in two}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="nothing tells what is mapped")
def test_a_state_that_was_read_can_be_removed_on_windows(tmp_path: Path) -> None:
    """There no file is removed, and no folder replaced, of which something is mapped: the optimizer keeps what it was
    given while the run goes on."""
    p, optimizer = walk("adamw", 3)
    io.write_folder(tmp_path / "state", pack(RunState(3, 6, {}, {}, {}), {"p": p}, optimizer))
    _, _, moments = unpack(tmp_path / "state")
    restore_optimizer(optimizer, moments, {})
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_ema_by_hand_and_put_back_bit_for_bit() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"p": p}, 0.5)
    value = 1.0
    for step in range(1, 9):
        with torch.no_grad():
            p.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        value = decay * value + (1 - decay) * (1.0 + step)
    with averaged([p], torch.optim.SGD([p], 0.1), ema):
        assert p.item() == pytest.approx(value)
    assert p.item() == 9.0


def test_showing_schedule_free_weights_changes_no_bit() -> None:
    plain, _ = walk("schedule_free", 5)
    p, optimizer = walk("schedule_free", 5)
    with averaged([p], optimizer, None):
        assert not torch.equal(p, plain)  # the average, not the point where gradients are taken
    assert torch.equal(p, plain)
    for q, o in ((p, optimizer), walk("schedule_free", 5)):
        q.grad = torch.ones_like(q)
        o.step()
    assert optimizer.param_groups[0]["train_mode"]
