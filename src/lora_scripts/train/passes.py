"""A batch there and back: its loss, with the gradients left where the optimizer finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.amp import GradScaler

from lora_scripts.adapters.masters import Masters
from lora_scripts.compute.attention import quickest_attention
from lora_scripts.compute.recorded import Recorded
from lora_scripts.families.base import Batch, PictureFamily
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.noise import Draws
from lora_scripts.train.ahead import ahead

B = TypeVar("B")
Pass = Callable[[B], tuple[Tensor, int]]
"""A batch -> the sum of its losses, without gradient, and how many were summed, but for those of what is preserved.
Gradients are added to `.grad`."""
Off = Callable[[], AbstractContextManager[None]]
"""Within it the base answers alone."""


def there_and_back(
    loss_of: Callable[[B], tuple[Tensor, int]],
    scaler: GradScaler,
    gather: Callable[[], None] = lambda: None,
    forget: Callable[[], None] = lambda: None,
) -> Pass[B]:
    """`loss_of` gives the sum of a batch's losses, with gradient, and how many were summed. `gather` is called after
    each backward pass, and puts into `.grad` what the model keeps elsewhere; `forget` after one that came to no end."""

    def go(batch: B) -> tuple[Tensor, int]:
        try:
            loss, n = loss_of(batch)
            scaler.scale(loss).backward()
        except BaseException:
            forget()
            raise
        gather()
        return loss.detach(), n

    return go


@dataclass(frozen=True)
class Ready:
    """A batch as the tensors that its losses are a function of, what is drawn for it among them."""

    tensors: Mapping[str, Tensor]
    names: Sequence[str]
    preserved: bool = False
    """As of `Batch`."""


def losses(family: PictureFamily, off: Off, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
    """As of the family, of any batch: where the base's answers are to stay, it is asked for them first."""
    if batch.preserved:
        with off(), torch.no_grad():
            batch = replace(batch, answers=family.answers(batch, objective, draws))
    return family.losses(batch, objective, draws)


def counted(batch: Batch | Ready) -> int:
    """How many samples of a step a batch is."""
    return 0 if batch.preserved else len(batch.names)


class Passes(Protocol):
    """Of a picture family: a `Pass`, and what is done around it."""

    @property
    def fault(self) -> str:
        """Why it could not work as it was meant to; empty while all is well."""
        ...

    def ahead(self, steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch | Ready]]]:
        """Steps with their batches as `__call__` takes them."""
        ...

    def __call__(self, batch: Batch | Ready) -> tuple[Tensor, int]: ...

    def release(self) -> None:
        """Gives back memory that nothing else could use meanwhile."""
        ...


class LaunchedPasses:
    """Kernel by kernel, as Python comes to them."""

    fault = ""

    def __init__(
        self, family: PictureFamily, objective: Objective, scaler: GradScaler, masters: Masters, off: Off = nullcontext
    ) -> None:
        def loss(batch: Batch) -> tuple[Tensor, int]:
            if not batch.preserved:
                return family.loss(batch, objective)
            draws = batch.draws(objective, family.levels(objective))
            return losses(family, off, batch, objective, draws).sum(), counted(batch)

        self._device, self._go = family.device, there_and_back(loss, scaler, masters.gather, masters.forget)

    def ahead(self, steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch | Ready]]]:
        for epoch, batches in steps:
            yield epoch, [*batches]

    def __call__(self, batch: Batch | Ready) -> tuple[Tensor, int]:
        assert isinstance(batch, Batch)
        with quickest_attention(self._device):
            return self._go(batch)

    def release(self) -> None:
        pass


class RecordedPasses:
    """Recorded and played, on an NVIDIA card: for models of which a card is done with a kernel before Python has
    launched the next. While it computes a step the CPU makes the next one ready."""

    def __init__(
        self, family: PictureFamily, objective: Objective, scaler: GradScaler, masters: Masters, off: Off = nullcontext
    ) -> None:
        self.family, self.objective, self.scaler, self.masters, self.off = family, objective, scaler, masters, off
        self.recorded = Recorded(self._compute, family.device, self._undo)
        self._fresh, self._preserved = True, False

    @property
    def fault(self) -> str:
        return self.recorded.fault

    def ahead(self, steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch | Ready]]]:
        for (epoch, _), batches in ahead(steps, lambda step: [self._ready(batch) for batch in step[1]]):
            yield epoch, [*batches]

    def _ready(self, batch: Batch) -> Ready:
        """What the CPU has to do of a batch."""
        draws = batch.draws(self.objective, self.family.levels(self.objective))
        return Ready(tensors_of(batch, draws), batch.names, batch.preserved)

    def __call__(self, batch: Batch | Ready) -> tuple[Tensor, int]:
        ready = self._ready(batch) if isinstance(batch, Batch) else batch
        self.masters.forget()
        self._fresh = self.masters.fresh
        self._preserved = ready.preserved
        loss = self.recorded(ready.tensors, (self._fresh, self._preserved))
        self.masters.attach()
        return loss.clone(), counted(ready)

    def release(self) -> None:
        self.recorded.release()

    def _undo(self) -> None:
        self.masters.forget()
        if self._fresh:
            self.masters.detach()

    def _compute(self, given: Mapping[str, Tensor]) -> Tensor:
        batch, draws = batch_of(given)
        batch = replace(batch, preserved=self._preserved)
        with quickest_attention(self.family.device):
            loss = losses(self.family, self.off, batch, self.objective, draws).sum()
            self.scaler.scale(loss).backward()
        self.masters.gather()
        return loss.detach()


_TABLES = ("latents", "texts")
_ALONE = ("places", "masks", "weights")
_DRAWN = ("u", "noise", "posterior", "perturbation")


def tensors_of(batch: Batch, draws: Draws) -> dict[str, Tensor]:
    """All tensors that the losses of a batch are a function of, by name."""
    tables = {f"{name}.{key}": t for name in _TABLES for key, t in (getattr(batch, name) or {}).items()}
    alone = {name: getattr(batch, name) for name in _ALONE} | {name: getattr(draws, name) for name in _DRAWN}
    return tables | {name: t for name, t in alone.items() if t is not None}


def batch_of(given: Mapping[str, Tensor]) -> tuple[Batch, Draws]:
    """The way back; without names and captions, which no loss is a function of."""
    tables: dict[str, dict[str, Tensor]] = {name: {} for name in _TABLES}
    for name, t in given.items():
        table, _, key = name.partition(".")
        if key:
            tables[table][key] = t
    unnamed = [""] * len(given["u"])
    places, masks, weights = (given.get(name) for name in _ALONE)
    batch = Batch(tables["latents"], unnamed, tables["texts"], unnamed, [], places, masks, weights)
    return batch, Draws(given["u"], given["noise"], given["posterior"], given.get("perturbation"))
