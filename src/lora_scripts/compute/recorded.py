"""Work for a card that is launched once and played back: where a step is many small kernels, launching them from
Python takes longer than computing them (CUDA graphs; Gray 2019, "Getting started with CUDA graphs")."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST = 16
"""Recordings that are kept: each size of batch and of pictures is one. What comes after is computed as it comes."""

Given = Mapping[str, Tensor]


class Recorded:
    """A computation of tensors that gives one, on a card. Of each kind of input (names, shapes, types, and what the
    caller says of it) it is computed as it comes the first time, recorded the second, and then played.

    What it reads and writes besides its inputs must be where it was: weights, and gradients that are kept in a place of
    their own. It may not look at a number, nor wait, nor draw at random.
    """

    def __init__(
        self, compute: Callable[[Given], Tensor], device: torch.device, undo: Callable[[], None] = lambda: None
    ) -> None:
        """`undo`: takes back what `compute` did besides on the CPU, where a recording broke off: on the card it did
        nothing."""
        self.compute, self.device, self.undo = compute, device, undo
        self._seen: set[Hashable] = set()
        self._tapes: dict[Hashable, _Tape] = {}
        self._pool: Any = None
        self.fault = ""
        """Why nothing is recorded any more; empty while all is well."""

    def __call__(self, given: Given, kind: Hashable = None) -> Tensor:
        """What `compute` gives, in memory that the next call may write over."""
        key = (kind, tuple(sorted((name, t.shape, t.dtype) for name, t in given.items())))
        if (tape := self._tapes.get(key)) is not None:
            return tape.play(given)
        if not self.fault and key in self._seen and len(self._tapes) < MOST:
            made = self._record(given)
            if made is not None:
                self._tapes[key] = made
                return made.play(given)
            self.undo()
        self._seen.add(key)
        return self.compute({name: t.to(self.device) for name, t in given.items()})

    def release(self) -> None:
        """Gives back the memory that the recordings hold, which nothing else can use; the next of each kind is recorded
        anew."""
        self._tapes.clear()
        self._pool = None
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def _record(self, given: Given) -> _Tape | None:
        inputs = {name: torch.empty_like(t, device=self.device) for name, t in given.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the card meanwhile, as a preview's or a data loader's would.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = self.compute(inputs)
        except RuntimeError as error:  # too little memory for a second copy of what a step keeps, or a step that waits
            self.fault = str(error).partition("\n")[0] or type(error).__name__
            self.release()
            _mend_generator(self.device)
            return None
        self._pool = graph.pool()  # they are played one after the other, so all may use the same memory
        return _Tape(graph, inputs, output)


def _mend_generator(device: torch.device) -> None:
    """A recording that broke off leaves the card's generator waiting for its end: it goes on from a copy."""
    generator = torch.cuda.default_generators[device.index or 0]
    generator.graphsafe_set_state(generator.clone_state())


@dataclass(frozen=True)
class _Tape:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    output: Tensor

    def play(self, given: Given) -> Tensor:
        for name, place in self.inputs.items():
            place.copy_(given[name], non_blocking=True)
        self.graph.replay()
        return self.output
