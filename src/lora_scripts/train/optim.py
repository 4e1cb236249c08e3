"""Optimizers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Schedule = Literal["cosine", "constant", "linear", "cosine_restarts", "polynomial"]


@dataclass(frozen=True)
class Group:
    """Parameters that share a peak learning rate."""

    name: str
    parameters: list[nn.Parameter]
    lr: float
    start: int = 0
    """The first step in which it is trained."""
    stop: int | None = None
    """The first step in which it is trained no more."""
    weight_decay: float | None = None
    """If another than the optimizer's."""


@dataclass(frozen=True)
class Rates:
    """The learning rate over a run, as a share of the peak."""

    schedule: Schedule = "cosine"
    warmup: int = 0
    """Steps of a linear rise before the schedule begins."""
    cycles: int = 1
    """How often "cosine_restarts" starts again from the peak."""
    power: float = 2.0
    """Of "polynomial"; 1 would be linear."""

    def share(self, step: int, total: int) -> float:
        """Share of the peak rate at `step` (0 … total - 1)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, total - self.warmup)
        if self.schedule == "linear":
            return 1.0 - done
        if self.schedule == "polynomial":
            return float((1.0 - done) ** self.power)
        if self.schedule == "cosine_restarts":  # Loshchilov & Hutter 2017, eq. 5, with cycles of one length
            done = done * self.cycles % 1.0
        return 0.5 * (1.0 + math.cos(math.pi * done))

    def curve(self, peak: float, total: int, done: int) -> list[tuple[int, float]]:
        """(step, rate) of the first `done` of `total` steps, counted from 1."""
        return [(step + 1, peak * self.share(step, total)) for step in range(done)]


Rows = list[dict[str, Any]]


def _bare(method: Any) -> Any:
    """A method of torch's optimizers without what keeps the compiler out of it: that imports all of the compiler when
    it is first called (1.1 s of a start), and here nobody compiles one."""
    return inspect.unwrap(method)


class AdamW(torch.optim.AdamW):
    """torch's, which is never compiled."""

    step = torch.no_grad()(_bare(torch.optim.AdamW.step))
    add_param_group = _bare(torch.optim.AdamW.add_param_group)
    zero_grad = _bare(torch.optim.AdamW.zero_grad)
    state_dict = _bare(torch.optim.AdamW.state_dict)
    load_state_dict = _bare(torch.optim.AdamW.load_state_dict)


def adamw(rows: Rows, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel over all tensors where the device has it."""
    device = rows[0]["params"][0].device.type
    return AdamW(rows, weight_decay=weight_decay, fused=device in ("cpu", "cuda"))


def _adamw8bit(rows: Rows, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with its moments in 8 bits, in blocks (Dettmers et al. 2022)."""
    return _imported("bitsandbytes.optim").AdamW8bit(rows, weight_decay=weight_decay)


def _adafactor(rows: Rows, weight_decay: float) -> torch.optim.Optimizer:
    """Adafactor (Shazeer & Stern 2018): the second moment as a row and a column; the learning rate is the config's."""
    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return _imported("transformers.optimization").Adafactor(rows, weight_decay=weight_decay, **fixed)


def _lion(rows: Rows, weight_decay: float) -> torch.optim.Optimizer:
    """Lion (Chen et al. 2023): the sign of a momentum; a third to a tenth of AdamW's learning rate."""
    return _imported("lion_pytorch").Lion(rows, weight_decay=weight_decay)


def _prodigy(rows: Rows, weight_decay: float) -> torch.optim.Optimizer:
    """Prodigy (Mishchenko & Defazio 2024) finds the rate by itself; `learning_rate: 1` scales what it finds."""
    fixed = {"use_bias_correction": True, "safeguard_warmup": True}
    return _imported("prodigyopt").Prodigy(rows, weight_decay=weight_decay, **fixed)


def _schedule_free(rows: Rows, weight_decay: float) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024): an average of the weights in place of a falling rate."""
    made: torch.optim.Optimizer = _imported("schedulefree").AdamWScheduleFree(rows, weight_decay=weight_decay)
    made.train()  # type: ignore[attr-defined]
    return made


def _imported(module: str) -> Any:
    """An optional package; that it is there was checked with the config."""
    return importlib.import_module(module)


OPTIMIZERS: dict[str, Callable[[Rows, float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "lion": _lion,
    "prodigy": _prodigy,
    "schedule_free": _schedule_free,
}


def build_optimizer(name: str, groups: Iterable[Group], weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer of that name over the groups, each with its peak learning rate."""
    groups = list(groups)
    rows: Rows = [
        {"params": g.parameters, "lr": g.lr, "peak": g.lr, "name": g.name, "start": g.start, "stop": g.stop}
        for g in groups
    ]
    for row, group in zip(rows, groups, strict=True):
        if group.weight_decay is not None:
            row["weight_decay"] = group.weight_decay
    return OPTIMIZERS[name](rows, weight_decay)


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets every group to its peak times `share`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def guards_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step with `found_inf` set to a tensor of 1 changes nothing (torch's fused kernels, made for scaled
    gradients)."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def rest_groups(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Takes the gradients of groups that are not trained in `step` (0 …), so that the optimizer passes over them."""
    for group in optimizer.param_groups:
        if step < (group.get("start") or 0) or (group.get("stop") is not None and step >= group["stop"]):
            for p in group["params"]:
                p.grad = None
