"""The schedules by hand, and AdamW against its update written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lora_scripts.train.optim import Group, Schedule, adamw, factor, set_rates


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        # total 10, warm-up 2: 1/2 and 1, then 8 steps down from 1
        ("constant", {0: 0.5, 1: 1, 2: 1, 6: 1, 9: 1}),
        ("linear", {0: 0.5, 1: 1, 2: 1, 6: 0.5, 9: 1 / 8}),
        (
            "cosine",
            {0: 0.5, 1: 1, 2: 1, 4: 0.5 * (1 + math.sqrt(0.5)), 6: 0.5, 9: 0.5 * (1 + math.cos(7 * math.pi / 8))},
        ),
    ],
)
def test_schedules_by_hand(schedule: Schedule, wanted: dict[int, float]) -> None:
    assert {step: factor(step, 10, 2, schedule) for step in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_has_a_rate(schedule: Schedule) -> None:
    assert factor(0, 10, 0, schedule) == 1
    assert all(0 < factor(step, 10, warmup, schedule) <= 1 for warmup in (0, 1, 9, 10, 30) for step in range(10))
    assert factor(0, 1, 0, schedule) == 1


def test_adamw_is_the_papers_update() -> None:
    """Algorithm 2 of Loshchilov & Hutter 2019 with torch's defaults, over five steps and two groups."""
    g = torch.Generator().manual_seed(0)
    starts = [torch.randn(5, 3, generator=g), torch.randn(7, generator=g)]
    parameters = [nn.Parameter(p.clone()) for p in starts]
    optimizer = adamw([Group("a", [parameters[0]], 0.1), Group("b", [parameters[1]], 0.02)], weight_decay=0.05)
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
