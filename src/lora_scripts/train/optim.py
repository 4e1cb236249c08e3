"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Schedule = Literal["cosine", "constant", "linear"]


@dataclass(frozen=True)
class Group:
    """Parameters that share a peak learning rate."""

    name: str
    parameters: list[nn.Parameter]
    lr: float


def adamw(groups: Iterable[Group], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel over all tensors where the device has it."""
    rows = [{"params": g.parameters, "lr": g.lr, "peak": g.lr, "name": g.name} for g in groups]
    device = rows[0]["params"][0].device.type  # type: ignore[index]
    return torch.optim.AdamW(rows, weight_decay=weight_decay, fused=device in ("cpu", "cuda"))


def factor(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """Share of the peak rate at `step` (0 …  total - 1): a linear rise over `warmup` steps, then the schedule."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets every group to its peak times `share`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
