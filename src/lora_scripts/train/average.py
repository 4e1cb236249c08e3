"""The weights that are shown and saved, where they are not those that are trained: averages over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of the weights (Polyak & Juditsky 1992), float32."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (1 …). Early on the average is short: at most (1 + step) / (10 + step)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        trained = [self.parameters[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), trained, 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(values[name])


@contextmanager
def averaged(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, ema: Ema | None) -> Iterator[None]:
    """Within it the model holds its averaged weights (EMA's, or those of a schedule-free optimizer).

    Afterwards every bit is as before: the trained values are put back, not computed back.
    """
    free = hasattr(optimizer, "eval")
    if ema is None and not free:
        yield
        return
    kept = [p.detach().clone() for p in parameters]
    if free:
        optimizer.eval()  # type: ignore[attr-defined]
    if ema is not None:
        with torch.no_grad():
            for name, p in ema.parameters.items():
                p.copy_(ema.values[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
        if free:
            for group in optimizer.param_groups:
                group["train_mode"] = True
