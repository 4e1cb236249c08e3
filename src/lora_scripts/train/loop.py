"""The step, and the cadence around it. Knows no model and no file by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lora_scripts.compute.meter import ran_out
from lora_scripts.errors import Diverged
from lora_scripts.seeds import seed_of
from lora_scripts.train.average import Ema
from lora_scripts.train.optim import Rates, guards_itself, rest_groups, set_rates
from lora_scripts.train.state import RunState


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know of the config."""

    total: int
    """Optimizer steps of the whole run."""
    rates: Rates
    max_grad_norm: float
    seed: int
    save_every: int
    preview_every: int
    """0: never"""
    measure_every: int = 0
    """0: never; otherwise after the last step, too"""


@dataclass(frozen=True)
class StepFacts:
    """What is told of each step."""

    step: int
    """1 … total"""
    epoch: int
    loss: float
    share: float
    """Learning rate as a share of the peak."""
    grad_norm: float
    images: int
    seconds: float


@dataclass(frozen=True)
class Hooks:
    """What happens around the steps."""

    told: Callable[[StepFacts], None]
    save: Callable[[], None]
    preview: Callable[[], None]
    stop: Callable[[], bool]
    """True: save and leave."""
    measure: Callable[[], bool] = lambda: False
    """True: this step shall be the last."""
    keep_best: Callable[[], None] = lambda: None
    """Called after `measure`, when what it found is saved."""


class Halfway(RuntimeError):
    """The optimizer failed in the middle of its step: weights and moments are those of no step."""


class NoRoom(RuntimeError):
    """Memory ran out in the batches of a step. Nothing was moved: it can be taken again in smaller pieces."""


class Batch(Protocol):
    """What the loop knows of a batch: what to call it when its loss is no number."""

    @property
    def names(self) -> Sequence[str]: ...


B = TypeVar("B", bound=Batch)


def run_loop(
    there_and_back: Callable[[B], tuple[Tensor, int]],
    steps: Callable[[int, int], Iterator[tuple[int, list[B]]]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    settings: LoopSettings,
    state: RunState,
    hooks: Hooks,
    ema: Ema | None = None,
) -> bool:
    """Trains from `state.step` to the end, keeping `state` up to date; False if `hooks.stop` ended it before.

    `there_and_back` is a `passes.Pass`; `steps(first, total)` gives the epoch and the batches of each step.

    All randomness is a function of (seed, step), so a run that continues equals one that never stopped. UserError for a
    loss or a gradient that is not finite, before it reaches the weights, and after what was learnt so far is saved.
    Whatever else is raised leaves everything as it was after `state.step` steps, but for gradients, unless it is
    `Halfway`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for epoch, batches in steps(state.step, settings.total):
        start, share = time.perf_counter(), settings.rates.share(state.step, settings.total)
        set_rates(optimizer, share)
        torch.manual_seed(seed_of(f"dropout/{settings.seed}/{state.step}"))  # noise comes with the batch
        total, count = torch.zeros((), device=parameters[0].device), 0
        try:
            for batch in batches:
                loss, n = there_and_back(batch)
                total, count = total + loss, count + n
        except (MemoryError, RuntimeError) as error:
            if ran_out(error):
                raise NoRoom(str(error) or "out of memory") from error
            raise
        scaler.unscale_(optimizer)
        if grads := [p.grad for p in parameters if p.grad is not None]:
            torch._foreach_div_(grads, count)
        rest_groups(optimizer, state.step)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or float("inf"))
        try:
            summed, length, sound = _update(optimizer, scaler, torch.stack([total, norm.to(total)]))
            if sound and ema is not None:
                ema.update(state.step + 1)
        except (MemoryError, RuntimeError) as error:
            raise Halfway(str(error) or "out of memory") from error
        if not sound:
            if state.step:
                state.scaler = scaler.state_dict()
                hooks.save()
            raise _diverged(state.step + 1, batches)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        state.step += 1
        state.losses.append(summed / count)
        seconds = time.perf_counter() - start
        hooks.told(StepFacts(state.step, epoch, summed / count, share, length, count, seconds))
        last, stop = state.step == settings.total, hooks.stop()
        measured = settings.measure_every > 0 and (last or state.step % settings.measure_every == 0)
        last = (measured and hooks.measure()) or last
        if stop or last or state.step % settings.save_every == 0:
            state.scaler = scaler.state_dict()
            hooks.save()
        if measured:
            hooks.keep_best()
        if stop and not last:
            return False
        if last:
            return True
        if settings.preview_every and state.step % settings.preview_every == 0:
            hooks.preview()
    return True


def _update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, found: Tensor) -> tuple[float, float, bool]:
    """Moves the weights, unless what was `found` [2], loss and length of the gradient, is no number: both, and whether
    they are. With fp16 a gradient may overflow: the scaler leaves such a step out by itself."""
    guarded = guards_itself(optimizer) and not scaler.is_enabled()
    if guarded:
        # A kernel that is told of numbers that are none leaves everything as it is: so it is under way before the CPU,
        # which waits for the device below and there alone, has seen them.
        optimizer.found_inf = (~found.isfinite().all()).float()  # type: ignore[attr-defined]
        optimizer.step()
    summed, length = found.tolist()
    sound = math.isfinite(summed) and (scaler.is_enabled() or math.isfinite(length))
    if sound and not guarded:
        scaler.step(optimizer)
    return summed, length, sound


def _diverged(step: int, batches: Sequence[Batch]) -> Diverged:
    names = ", ".join(dict.fromkeys(name for batch in batches for name in batch.names))
    saved = "; what was learnt before it is saved" if step > 1 else ""
    return Diverged(
        f"step {step}: the loss or its gradient is not a finite number, at {names}{saved}",
        hint="look at these, lower learning_rate, or use precision bf16 or fp32; start in another output_dir",
    )
