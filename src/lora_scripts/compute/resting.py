"""Frozen models that are asked now and then: while they are, in RAM, in float32, else in the file they came from.

One that is given as `Unbuilt` is not even built before it is asked: neither are the libraries imported that it is made
with, which take longer than all else of a start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

_LINE = 64
"""Bytes: torch's own tensors begin at such addresses. Products may round otherwise at others, as in a mapped file."""


@dataclass(frozen=True)
class Unbuilt:
    """A model that is not built yet."""

    build: Callable[[], Any]


def built(model: Any) -> Any:
    """A model, whether it was built before or not."""
    return model.build() if isinstance(model, Unbuilt) else model


class Resting:
    """A model that was just loaded, its numbers still mapped from its file, of whatever precision they are there.

    Awake it has them in float32 on a device; what was mapped stays so, and costs no RAM. One into which layers were
    put since, such as a LoRA, does not go back: those may have changed what they lie on.
    """

    def __init__(self, model: Any, prepare: Callable[[Any], None] = lambda model: None) -> None:
        """`model`: one, or a `Unbuilt`; `prepare`: what is done to it once, when it is there."""
        self._given, self._prepare, self.awake = model, prepare, False
        if not isinstance(model, Unbuilt):
            self.model  # noqa: B018  (its numbers are to be seen as they are now)

    @cached_property
    def model(self) -> Any:
        """The model, built if it was not."""
        model = built(self._given).requires_grad_(False).eval()
        self._prepare(model)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.float()
        self._homes = [(p, p.data) for p in model.parameters()]
        self._modules = {id(module) for module in model.modules()}
        return model

    @property
    def _built(self) -> bool:
        return "model" in vars(self)

    @property
    def untouched(self) -> bool:
        """Whether nothing was put in since it was loaded."""
        return not self._built or self._modules == {id(module) for module in self.model.modules()}

    def wake(self, device: torch.device) -> None:
        """Makes the model ready to be asked, there."""
        model = self.model
        if not self.awake:
            for p, home in self._homes:
                p.data = _own(home, device)
        self.awake = True
        model.to(device)  # what was put in since, too

    def rest(self) -> None:
        """Nobody needs it for a while."""
        if not self._built:
            return
        self.model.to("cpu")
        if self.untouched:
            for p, home in self._homes:
                p.data = home
            self.awake = False


class Late(Mapping[str, nn.Module]):
    """Parts of a model by name, each there when it is asked for."""

    def __init__(self, parts: Mapping[str, Callable[[], nn.Module]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> nn.Module:
        return self._parts[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _own(home: Tensor, device: torch.device) -> Tensor:
    """Its numbers in float32 there. A card gets them as they are in the file, and widens them itself."""
    if device.type == "cuda":
        return home.to(device).to(torch.float32)
    mapped_well = home.dtype == torch.float32 and home.data_ptr() % _LINE == 0
    return (home if mapped_well else home.to(torch.float32, copy=True)).to(device)
