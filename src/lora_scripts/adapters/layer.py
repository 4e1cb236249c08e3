"""LoRA layers: dW = (alpha / rank) * B @ A beside a frozen layer (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters import products
from lora_scripts.adapters.changed import Site, changed


class Adapter(nn.Module):
    """A frozen `nn.Linear` or `nn.Conv2d` (or another adapter around one) with a trained change beside it.

    A subclass says how the change is computed; whoever trains, saves and exports knows only what stands here.
    """

    rank: int
    alpha: float

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.strength, self.dropout = base, 1.0, 0.0

    @property
    def frozen(self) -> nn.Linear | nn.Conv2d:
        """The innermost layer, under any number of adapters."""
        base = self.base
        while isinstance(base, Adapter):
            base = base.base
        assert isinstance(base, nn.Linear | nn.Conv2d)
        return base

    @property
    def weight(self) -> Tensor:
        """The frozen weight; code that asks a layer for its dtype or device finds it here."""
        return self.frozen.weight

    @property
    def bias(self) -> Tensor | None:
        return self.frozen.bias

    def values(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, float32."""
        raise NotImplementedError

    def late(self) -> list[nn.Parameter]:
        """Those of `values` that begin at zero, so that the change does: LoRA+ moves them faster (its B)."""
        return []

    def leaves(self) -> dict[str, Tensor]:
        """What a file holds of this layer, by the leaf of its key; on the CPU, float32, independent of the layer."""
        raise NotImplementedError

    def reset(self, generator: torch.Generator) -> None:
        """A start at which the change is exactly 0."""
        raise NotImplementedError

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """dW in the shape of the frozen weight, strength not counted."""
        raise NotImplementedError

    def place(self, device: torch.device) -> None:
        """Moves all but the frozen layer, which may live elsewhere."""
        base = self.__dict__["_modules"].pop("base")
        self.to(device)
        self.base = base

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copies values in, by the names of `values()`."""
        for name, p in self.values().items():
            p.copy_(values[name].reshape(p.shape))


@contextmanager
def counting(layers: Iterable[Adapter], factor: float) -> Iterator[None]:
    """Within it the adapters count so many times as much; 0: the base answers alone."""
    strengths = {layer: layer.strength for layer in layers}
    for layer, strength in strengths.items():
        layer.strength = factor * strength
    try:
        yield
    finally:
        for layer, strength in strengths.items():
            layer.strength = strength


class LoraLayer(Adapter):
    """`down` is A: [rank, in] or [rank, in, kh, kw]; `up` is B: [out, rank] or [out, rank, 1, 1].

    Both are float32, whatever the base is kept in. They are cast to the input's dtype for the two small products, so
    nothing is upcast and, with the base frozen, autograd keeps only the input and the rank-wide product.
    """

    copies: tuple[Tensor, Tensor] | None = None
    """A and B in the type of the products, kept up to date by `masters.Masters`."""
    group: Group | None = None
    """The layers that its A is also theirs; None: it has an A of its own."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        device = products.outline(self.frozen).device
        down, up = lora_shapes(self.frozen, rank)
        self.down = nn.Parameter(torch.zeros(down, device=device))
        self.up = nn.Parameter(torch.zeros(up, device=device))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def values(self) -> dict[str, nn.Parameter]:
        return {"down": self.down, "up": self.up}

    def late(self) -> list[nn.Parameter]:
        return [self.up]

    def leaves(self) -> dict[str, Tensor]:
        kept = {"lora_down.weight": self.down, "lora_up.weight": self.up}
        return {n: t.detach().cpu().clone() for n, t in kept.items()} | {"alpha": torch.tensor(float(self.alpha))}

    def reset(self, generator: torch.Generator) -> None:
        """A uniform in +-1/sqrt(fan in) (Kaiming with a = sqrt(5), as `nn.Linear`), B zero."""
        bound = 1 / math.sqrt(self.down[0].numel())
        start = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.down.copy_(start)
            self.up.zero_()

    def forward(self, x: Tensor, *args: object, front: products.Front | None = None) -> Tensor:
        """`front`: what is done to x before."""
        if front is not None and not (self.fused and self.strength):
            x, front = products.keep_input(x, front), None
        if self.strength == 0.0:
            plain: Tensor = self.base(x, *args)
            return plain
        return self.changed(x, front)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the change, as they are multiplied with."""
        return self.copies if self.copies is not None and torch.is_grad_enabled() else (self.down, self.up)

    def changed(self, x: Tensor, front: products.Front | None = None) -> Tensor:
        """W x + strength * scale * B A x; or of front(x)."""
        if not self.fused:
            return self.add_change(self.base(x), x)
        if self.group is not None and front is None:
            return self.group.whole(self, x)
        return joined(x, [self], front)[0]

    @property
    def shares(self) -> bool:
        """Whether its first product can be one with those of other layers of the same input."""
        return self.fused and self.strength != 0.0 and products.is_pointwise(self.frozen)

    @property
    def fused(self) -> bool:
        """Whether the frozen product and the change are one function: not over another adapter, a weight that is
        trained itself, where dropout makes their inputs two, or where a compiler decides what is kept."""
        if torch.compiler.is_compiling() or self.base is not self.frozen or (self.dropout and self.training):
            return False
        return not any(tensor.requires_grad for tensor in products.held(self.frozen))

    def add_change(self, y: Tensor, x: Tensor) -> Tensor:
        """y + strength * scale * B A x, in place but where a compiler sees to it."""
        compiling = torch.compiler.is_compiling()  # then who compiles sees that some products are the same
        h = self.narrowed(x) if compiling or self.group is None else self.group.narrowed(self, x)
        # The factor goes onto the smallest tensor of the three: B.
        _, up = self.factors()
        up = (up * (self.scale * self.strength)).to(x.dtype)
        # In place: a sum may lie otherwise in memory than y (at 1 x 1 pixel), and what follows then rounds otherwise.
        change = F.linear(h, up) if isinstance(self.frozen, nn.Linear) else F.conv2d(h, up)
        return y + change if compiling else y.add_(change)

    def narrowed(self, x: Tensor) -> Tensor:
        """A x, of what dropout leaves of x."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        layer, down = self.frozen, self.factors()[0].to(x.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(x, down)
        return F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        up, down = self.up.detach().to(dtype), self.down.detach().to(dtype)
        return (self.scale * (up.flatten(1) @ down.flatten(1))).view(products.outline(self.frozen).shape)


class Group(Protocol):
    """Layers of one A, which are asked one after the other for the same input; `together.Together` is it."""

    def whole(self, layer: LoraLayer, x: Tensor) -> Tensor:
        """What the layer gives of x, the frozen product and the change as one function."""
        ...

    def narrowed(self, layer: LoraLayer, x: Tensor) -> Tensor:
        """A x"""
        ...

    def forget(self) -> None:
        """Drops what a pass may have left that came to no end."""
        ...


def alike(x: Tensor, layers: Sequence[nn.Module], front: products.Front | None = None) -> list[Tensor]:
    """What each of the layers gives of x, or of front(x): q, k and v of a self-attention.

    Those that can be one function share their first product, in both directions, and keep x once.
    """
    if all(isinstance(layer, LoraLayer) and layer.shares for layer in layers):
        return joined(x, [layer for layer in layers if isinstance(layer, LoraLayer)], front)
    z = x if front is None else products.keep_input(x, front)
    return [layer(z) for layer in layers]


def joined(x: Tensor, layers: Sequence[LoraLayer], front: products.Front | None = None) -> list[Tensor]:
    """What each of the layers gives of front(x), as one function. They all have one A, or each its own."""
    sites = [Site(layer.frozen, layer.scale * layer.strength) for layer in layers]
    return changed(x, sites, [layer.factors() for layer in layers], front)


def lora_shapes(layer: nn.Linear | nn.Conv2d, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B for a layer."""
    out, inner = products.outline(layer).shape[:2]
    if isinstance(layer, nn.Linear):
        return (rank, inner), (out, rank)
    return (rank, inner, *layer.kernel_size), (out, rank, 1, 1)
