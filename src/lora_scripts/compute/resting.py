"""Frozen models that are asked now and then: while they are, in RAM, in float32, else in the file they came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LINE = 64
"""Bytes: torch's own tensors begin at such addresses. Products may round otherwise at others, as in a mapped file."""


class Resting:
    """A model that was just loaded, its numbers still mapped from its file, of whatever precision they are there.

    Awake it has them in float32 on a device; what was mapped stays so, and costs no RAM. One into which layers were
    put since, such as a LoRA, does not go back: those may have changed what they lie on.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.awake = model.requires_grad_(False).eval(), False
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.float()
        self._homes = [(p, p.data) for p in model.parameters()]
        self._modules = {id(module) for module in model.modules()}

    def wake(self, device: torch.device) -> None:
        """Makes the model ready to be asked, there."""
        if not self.awake:
            for p, home in self._homes:
                p.data = _own(home).to(device)
        self.awake = True
        self.model.to(device)  # what was put in since, too

    def rest(self) -> None:
        """Nobody needs it for a while."""
        self.model.to("cpu")
        if self._modules == {id(module) for module in self.model.modules()}:
            for p, home in self._homes:
                p.data = home
            self.awake = False


def _own(home: Tensor) -> Tensor:
    mapped_well = home.dtype == torch.float32 and home.data_ptr() % _LINE == 0
    return home if mapped_well else home.to(torch.float32, copy=True)
