"""The float32 factors of many LoRA layers in one piece, and their copies in the type that the products are made in."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lora_scripts.adapters.layer import Adapter, Group, LoraLayer
from lora_scripts.adapters.products import outline


class Masters:
    """One cast a step in place of one for each factor, forward and back.

    The parameters stay what they are to everybody else: float32, with their gradient in `.grad` after `gather`. While
    gradients are on, the layers multiply with the copies, which `refresh` makes after whatever has changed the
    parameters. Layers whose base is float32, and what is no factor of a LoRA, are left as they are.
    """

    def __init__(self, layers: Iterable[Adapter]) -> None:
        kinds: dict[tuple[torch.device, torch.dtype], list[LoraLayer]] = {}
        self._groups: set[Group] = set()
        for layer in layers:
            if isinstance(layer, LoraLayer) and layer.group is not None:
                self._groups.add(layer.group)
            dtype = outline(layer.frozen).dtype
            if isinstance(layer, LoraLayer) and dtype != torch.float32 and layer.down.requires_grad:
                kinds.setdefault((layer.down.device, dtype), []).append(layer)
        self._pieces = [_Piece(some, dtype) for (_, dtype), some in kinds.items()]

    def refresh(self) -> None:
        """The parameters have changed."""
        for piece in self._pieces:
            piece.refresh()

    def gather(self) -> None:
        """After a backward pass: adds the copies' gradients to the parameters' own."""
        for piece in self._pieces:
            piece.gather()

    def holds(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether every one of the parameters is here, so that all gradients are in its places."""
        here = {id(p) for piece in self._pieces for p in piece.parameters}
        return all(id(p) in here for p in parameters)

    @property
    def fresh(self) -> bool:
        """Whether no parameter has a gradient, so that the next `gather` begins a sum."""
        return all(p.grad is None for piece in self._pieces for p in piece.parameters)

    def forget(self) -> None:
        """Drops what a pass may have left that came to no end: gradients of the copies, and what groups have ready."""
        for group in self._groups:
            group.forget()
        for piece in self._pieces:
            for copy in piece.copies:
                copy.grad = None

    def detach(self) -> None:
        """No parameter has a gradient."""
        for piece in self._pieces:
            for p in piece.parameters:
                p.grad = None

    def attach(self) -> None:
        """After a `gather` that was played back, where Python had no part in it: puts what it made into `.grad`."""
        for piece in self._pieces:
            for p, grad in zip(piece.parameters, piece.grads, strict=True):
                p.grad = grad


class _Piece:
    """Layers on one device, with products in one type."""

    def __init__(self, layers: Iterable[LoraLayer], dtype: torch.dtype) -> None:
        self.layers = list(layers)
        every = {id(p): p for layer in self.layers for p in (layer.down, layer.up)}  # an A may be that of several
        self.parameters: list[nn.Parameter] = list(every.values())
        self.flat = torch.cat([p.detach().flatten() for p in self.parameters])
        self.cast, self.sum = self.flat.to(dtype), torch.zeros_like(self.flat)
        for p, part in zip(self.parameters, self._parts(self.flat), strict=True):
            p.data = part
        self.copies = [part.detach().requires_grad_() for part in self._parts(self.cast)]
        self.grads = self._parts(self.sum)
        copy_of = dict(zip(every, self.copies, strict=True))
        for layer in self.layers:
            layer.copies = copy_of[id(layer.down)], copy_of[id(layer.up)]

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """A view of each parameter's place, in its shape."""
        places = flat.split([p.numel() for p in self.parameters])
        return [place.view(p.shape) for place, p in zip(places, self.parameters, strict=True)]

    @torch.no_grad()
    def refresh(self) -> None:
        self.cast.copy_(self.flat)

    @torch.no_grad()
    def gather(self) -> None:
        got = [copy.grad for copy in self.copies]
        if all(grad is None for grad in got):
            return
        flat = torch.cat([_row(grad, p) for grad, p in zip(got, self.parameters, strict=True)])
        fresh = all(p.grad is None for p in self.parameters)
        self.sum.copy_(flat) if fresh else self.sum.add_(flat)
        for copy, p, grad in zip(self.copies, self.parameters, self.grads, strict=True):
            if copy.grad is not None:  # one that took no part has none, and the optimizer passes over it
                p.grad, copy.grad = grad, None


def _row(grad: Tensor | None, p: Tensor) -> Tensor:
    return p.new_zeros(p.numel()) if grad is None else grad.flatten()
