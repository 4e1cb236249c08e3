"""One A for several layers of one input, as a LoRA has it of a matrix whose rows are theirs (q, k and v as one)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lora_scripts.adapters.layer import Adapter, LoraLayer, joined


class Together:
    """Layers that a model asks one after the other for the same x, each with a B of its own and all with one A.

    The first that is asked computes what A x is needed for; what that gives for the others waits until they are asked
    for the same x. In which order does not matter, nor whether all are: for another x, or once the factors have
    changed, it is computed anew. Dropout leaves all of them the same part of x, as of the one matrix.
    """

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        """The A of the first is everyone's from now on."""
        self.layers = tuple(layers)
        for layer in self.layers:
            layer.down, layer.group = self.layers[0].down, self
        self.forget()

    def forget(self) -> None:
        """Drops what waits, and with it all that it was made of: after a pass that came to no end."""
        self._waiting: dict[LoraLayer, Tensor] = {}
        self._x: Tensor | None = None
        self._when: tuple[object, ...] = ()

    def whole(self, layer: LoraLayer, x: Tensor) -> Tensor:
        """As of `layer.Group`."""
        if not all(one.shares for one in self.layers):
            return joined(x, [layer])[0]
        return self._given(layer, x, lambda: joined(x, self.layers))

    def narrowed(self, layer: LoraLayer, x: Tensor) -> Tensor:
        """As of `layer.Group`."""
        return self._given(layer, x, lambda: [layer.narrowed(x)] * len(self.layers))

    def _given(self, layer: LoraLayer, x: Tensor, make: Callable[[], Sequence[Tensor]]) -> Tensor:
        when = self._state(x)
        if x is not self._x or when != self._when or layer not in self._waiting:
            self._waiting = dict(zip(self.layers, make(), strict=True))
            self._x, self._when = x, when
        found = self._waiting.pop(layer)
        if not self._waiting:
            self._x = None
        return found

    def _state(self, x: Tensor) -> tuple[object, ...]:
        """What must be the same for an answer that waits to be still right."""
        factors = [t for layer in self.layers for t in layer.factors()]
        told = [(layer.strength, layer.training) for layer in self.layers]
        return torch.is_grad_enabled(), x._version, *(t._version for t in factors), *told


def share_down(layers: Mapping[str, Adapter], groups: Iterable[Sequence[str]]) -> list[Together]:
    """Gives one A to the layers of each group of paths, LoRAs of one rank and input."""
    return [Together([layer for path in group if isinstance(layer := layers[path], LoraLayer)]) for group in groups]
