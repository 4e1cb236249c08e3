"""Weights in bf16 that are trained, their masters in float32, and the masters' average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def update(
    optimizer: torch.optim.Optimizer,
    master: Sequence[nn.Parameter],
    trained: Sequence[nn.Parameter],
    ema: Sequence[torch.Tensor],
    lr: float,
    step: int,
) -> None:
    """The masters by the gradients of what is trained, which are taken away; then both copies. `step`: from 1 on."""
    for p, q in zip(master, trained, strict=True):
        p.grad, q.grad = (None if q.grad is None else q.grad.float()), None
    torch.nn.utils.clip_grad_norm_(master, 1.0)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()
    with torch.no_grad():
        torch._foreach_copy_([p.data for p in trained], [p.data for p in master])
        torch._foreach_lerp_(list(ema), [p.data for p in master], 1 - min(0.998, (1 + step) / (10 + step)))
