"""LoRA layers: dW = (alpha / rank) * B @ A beside a frozen layer (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters import products


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


class LoraLayer(Adapter):
    """`down` is A: [rank, in] or [rank, in, kh, kw]; `up` is B: [out, rank] or [out, rank, 1, 1].

    Both are float32, whatever the base is kept in. They are cast to the input's dtype for the two small products, so
    nothing is upcast and, with the base frozen, autograd keeps only the input and the rank-wide product.
    """

    copies: tuple[Tensor, Tensor] | None = None
    """A and B in the type of the products, kept up to date by `masters.Masters`."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        device = self.frozen.weight.device
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

    def forward(self, x: Tensor, *args: object, front: type[products.Front] | None = None) -> Tensor:
        """`front`: what is done to x before."""
        if front is not None and not (self.fused and self.strength):
            x, front = products.keep_input(x, front), None
        if self.strength == 0.0:
            plain: Tensor = self.base(x, *args)
            return plain
        return self.changed(x, *self.factors(), front)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the change, as they are multiplied with."""
        return self.copies if self.copies is not None and torch.is_grad_enabled() else (self.down, self.up)

    def changed(self, x: Tensor, down: Tensor, up: Tensor, front: type[products.Front] | None = None) -> Tensor:
        """W x + strength * scale * B A x; or of front(x)."""
        if not self.fused:
            return self.add_change(self.base(x), x, down, up)
        scale = self.scale * self.strength
        down, up, layer = down.to(x.dtype), up.to(x.dtype), self.frozen
        y: Tensor = _Changed.apply(x, down, up, scale, layer, front, *products.held(layer))
        return y

    @property
    def fused(self) -> bool:
        """Whether the frozen product and the change are one function: not over another adapter, a weight that is
        trained itself, or where dropout makes their inputs two."""
        if self.base is not self.frozen or (self.dropout and self.training):
            return False
        return not any(tensor.requires_grad for tensor in products.held(self.frozen))

    def add_change(self, y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """y + strength * scale * B A x, in place."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        # The factor goes onto the smallest tensor of the three: B.
        down, up = down.to(x.dtype), (up * (self.scale * self.strength)).to(x.dtype)
        layer = self.frozen
        # In place: a sum may lie otherwise in memory than y (at 1 x 1 pixel), and what follows then rounds otherwise.
        if isinstance(layer, nn.Linear):
            return y.add_(F.linear(F.linear(x, down), up))
        h = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return y.add_(F.conv2d(h, up))

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        up, down = self.up.detach().to(dtype), self.down.detach().to(dtype)
        return (self.scale * (up.flatten(1) @ down.flatten(1))).view(self.frozen.weight.shape)


class _Changed(torch.autograd.Function):
    """W z + s B A z of z = front(x). Of what it computes it keeps nothing: x is kept, and z and A z are made again.

    With g the gradient by the output and u = s B' g: dz = W' g + A' u, dA = u z', dB = s g (A z)'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        up: Tensor,
        scale: float,
        layer: products.Layer,
        front: type[products.Front] | None,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.scale, ctx.front = layer, scale, front
        ctx.save_for_backward(x, down, up, *tensors)
        x = x if front is None else front.value(x)
        y = products.product(layer, x, products.whole(layer, tensors, x.dtype))
        _add(y, layer, _small(layer, x, down), up, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept, down, up, *tensors), layer, scale, (grad,) = ctx.saved_tensors, ctx.layer, ctx.scale, grads
        x = kept if ctx.front is None else ctx.front.value(kept)
        for_x, for_down, for_up = ctx.needs_input_grad[:3]
        rows = products.rows_of(layer, grad)
        u = _times(rows, up.flatten(1), scale)  # [places, rank]
        dx = d_down = d_up = None
        if for_up:
            d_up = _times(rows.T, _small(layer, x, down), scale).view(up.shape)
        if for_x:
            dx = products.pullback(layer, grad, products.whole(layer, tuple(tensors), grad.dtype), x.shape)
        if products.is_pointwise(layer):
            if for_down:
                d_down = (u.T @ products.rows_of(layer, x)).view(down.shape)
            if dx is not None:
                _add(dx, layer, u, down.flatten(1).T, 1.0)
        else:
            assert isinstance(layer, nn.Conv2d)
            pixels = u.view(grad.shape[0], *grad.shape[2:], -1).permute(0, 3, 1, 2)
            which = (dx is not None, for_down, False)
            more, d_down, _ = torch.ops.aten.convolution_backward(
                pixels, x, down, None, layer.stride, layer.padding, layer.dilation, False, (0, 0), 1, which
            )
            dx = None if dx is None else dx.add_(more)
        if ctx.front is not None and dx is not None:
            dx = ctx.front.pullback(kept, dx)
        return dx, d_down, d_up, None, None, None, *(None for _ in tensors)


def _small(layer: products.Layer, x: Tensor, down: Tensor) -> Tensor:
    """A x, [places, rank]."""
    if products.is_pointwise(layer):
        return products.rows_of(layer, x) @ down.flatten(1).T
    assert isinstance(layer, nn.Conv2d)
    h = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
    return products.rows_of(layer, h)


def _add(y: Tensor, layer: products.Layer, h: Tensor, matrix: Tensor, scale: float) -> None:
    """y + scale * matrix h, in place, of h [places, rank] and a matrix [channels, rank]."""
    matrix = matrix.flatten(1)
    if isinstance(layer, nn.Linear):
        y.view(-1, y.shape[-1]).addmm_(h, matrix.T, alpha=scale)
    elif y.is_contiguous(memory_format=torch.channels_last):
        y.permute(0, 2, 3, 1).view(-1, y.shape[1]).addmm_(h, matrix.T, alpha=scale)
    else:
        n = y.shape[0]
        y.view(n, y.shape[1], -1).baddbmm_(matrix.expand(n, -1, -1), h.view(n, -1, h.shape[1]).mT, alpha=scale)


def _times(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a b, rounded once."""
    return a @ b if scale == 1.0 else torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def lora_shapes(layer: nn.Linear | nn.Conv2d, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B for a layer."""
    out, inner = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        return (rank, inner), (out, rank)
    return (rank, inner, *layer.kernel_size), (out, rank, 1, 1)
