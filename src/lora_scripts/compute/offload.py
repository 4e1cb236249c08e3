"""Frozen blocks that live in RAM, each brought to the card for its turn."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lora_scripts.compute.checkpoints import around
from lora_scripts.errors import UserError


class Copies(Protocol):
    """Tensors on their way to the card."""

    def arrived(self) -> list[Tensor]:
        """The copies, once whatever is computed next may read them."""
        ...


class Mover(Protocol):
    """Where tensors live, and how they are brought."""

    def home(self, tensor: Tensor) -> Tensor:
        """The tensor as it lies in RAM."""
        ...

    def begin(self, tensors: Sequence[Tensor]) -> Copies:
        """Starts to copy to the card."""
        ...

    def turn(self) -> None:
        """Called when a block's turn begins, before others are brought: may wait, so that not too many are there."""
        ...


class CudaMover:
    """Pinned memory, and a stream of its own for the copies."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self._last: torch.cuda.Event | None = None

    def home(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().pin_memory()

    def begin(self, tensors: Sequence[Tensor]) -> Copies:
        with torch.cuda.stream(self.stream):
            copies = [t.to(self.device, non_blocking=True) for t in tensors]
            done = torch.cuda.Event()
            done.record(self.stream)
        return _CudaCopies(copies, done)

    def turn(self) -> None:
        # Python runs ahead of the card. Were it to bring block after block, they would all be there at once: so it
        # waits until the card has begun with the block before this one.
        if self._last is not None:
            self._last.synchronize()
        self._last = torch.cuda.Event()
        self._last.record(torch.cuda.current_stream(self.device))


class PlainMover:
    """From where tensors lie anyway: takes no RAM, and waits for each copy. For what is done once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def home(self, tensor: Tensor) -> Tensor:
        return tensor

    def begin(self, tensors: Sequence[Tensor]) -> Copies:
        return _Arrived([t.to(self.device) for t in tensors])

    def turn(self) -> None:
        pass


@dataclass(frozen=True)
class _Arrived:
    copies: list[Tensor]

    def arrived(self) -> list[Tensor]:
        return self.copies


@dataclass(frozen=True)
class _CudaCopies:
    copies: list[Tensor]
    done: torch.cuda.Event

    def arrived(self) -> list[Tensor]:
        current = torch.cuda.current_stream(self.copies[0].device)
        current.wait_event(self.done)
        for copy in self.copies:
            copy.record_stream(current)  # its memory is not given away while the computation still reads it
        return self.copies


@dataclass(frozen=True)
class Slot:
    """Where a tensor stands in a module."""

    owner: MutableMapping[str, Any]
    name: str

    @property
    def tensor(self) -> Tensor:
        found = self.owner[self.name]
        assert found is not None
        return found

    def put(self, tensor: Tensor) -> None:
        # Another object in its place: what autograd kept of the one before stays where it was.
        parameter = isinstance(self.tensor, nn.Parameter) and not isinstance(tensor, nn.Parameter)
        self.owner[self.name] = nn.Parameter(tensor, requires_grad=False) if parameter else tensor


@dataclass
class Offloader:
    """Keeps frozen blocks in RAM; the one whose turn it is, and the next, are on the card.

    A block goes through `around`, so a pass keeps its input alone, and in the backward pass the block comes again.
    """

    blocks: Sequence[nn.Module]
    """In the order in which they are run."""
    mover: Mover
    _slots: list[list[Slot]] = field(default_factory=list)
    _homes: list[list[Tensor]] = field(default_factory=list)
    _coming: dict[int, Copies] = field(default_factory=dict)
    _there: set[int] = field(default_factory=set)
    _last: int = -1

    def __post_init__(self) -> None:
        """Takes every tensor that the blocks have now home. Adapters that come later stay on the card."""
        for number, block in enumerate(self.blocks):
            slots = [s for module in block.modules() for s in slots_of(module)]
            self._slots.append(slots)
            self._homes.append([_like(self.mover.home(s.tensor), s.tensor) for s in slots])
            self._send(number)
            around(block, partial(self._turn, number))

    def _turn(self, number: int) -> None:
        """The block's computation begins."""
        following = self._next(number)
        for other in {*self._there, *self._coming} - {number, following}:
            self._send(other)
        self.mover.turn()
        self._begin(number)
        if number not in self._there:
            for slot, copy in zip(self._slots[number], self._coming.pop(number).arrived(), strict=True):
                slot.put(copy)
            self._there.add(number)
        self._begin(following)
        self._last = number

    def _next(self, number: int) -> int:
        """Up in the forward pass, down in the backward pass, which begins with the block that was the last."""
        top = len(self.blocks) - 1
        if number == top:
            return max(0, top - 1) if torch.is_grad_enabled() else 0
        if number == 0 or number > self._last:
            return number + 1
        return number - 1

    def _begin(self, number: int) -> None:
        if number not in self._there and number not in self._coming:
            self._coming[number] = self.mover.begin(self._homes[number])

    def _send(self, number: int) -> None:
        """Nothing is copied: frozen weights are at home as they were."""
        self._coming.pop(number, None)
        self._there.discard(number)
        for slot, home in zip(self._slots[number], self._homes[number], strict=True):
            slot.put(home)


def slots_of(module: nn.Module) -> Iterable[Slot]:
    """A module's own tensors."""
    for owner in (module._parameters, module._buffers):
        yield from (Slot(owner, name) for name, tensor in owner.items() if tensor is not None)


def _like(home: Tensor, tensor: Tensor) -> Tensor:
    return nn.Parameter(home, requires_grad=False) if isinstance(tensor, nn.Parameter) else home


def offload(blocks: Sequence[nn.Module], count: int, mover: Mover) -> Offloader:
    """Sends the `count` largest of the blocks home. UserError if there are not so many."""
    if count > len(blocks):
        raise UserError(f"offload_blocks {count}: this model has {len(blocks)} blocks", hint=f"{len(blocks)} at most")
    sizes = [sum(s.tensor.nbytes for module in block.modules() for s in slots_of(module)) for block in blocks]
    largest = sorted(range(len(blocks)), key=lambda n: -sizes[n])[:count]
    return Offloader([blocks[n] for n in sorted(largest)], mover)
