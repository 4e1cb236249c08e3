"""A mover of blocks from memory to memory, for machines without a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass
class Arrival:
    copies: list[Tensor]

    def arrived(self) -> list[Tensor]:
        return self.copies


@dataclass
class CopyMover:
    """Copies from memory to memory, and counts."""

    begun: int = 0
    most: int = 0
    """Blocks' copies that were alive when a block's turn began."""
    alive: list[list[StorageWeakRef]] = field(default_factory=list)

    def home(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def begin(self, tensors: Sequence[Tensor]) -> Arrival:
        copies = [t.detach().clone() for t in tensors]
        self.alive.append([StorageWeakRef(c.untyped_storage()) for c in copies])
        self.begun += 1
        return Arrival(copies)

    def turn(self) -> None:
        self.most = max(self.most, sum(not all(ref.expired() for ref in refs) for refs in self.alive))
