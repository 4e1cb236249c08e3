"""LoRA layers: dW = (alpha / rank) * B @ A beside a frozen layer (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
    sites = [_Site(layer.frozen, layer.scale * layer.strength) for layer in layers]
    factors = [layer.factors() for layer in layers]
    downs = [down.to(x.dtype) for down in {id(down): down for down, _ in factors}.values()]
    ups = [up.to(x.dtype) for _, up in factors]
    held = [t for site in sites for t in products.held(site.layer)]
    given: tuple[Tensor, ...] = () if front is None else front.tensors
    return list(_Changed.apply(x, sites, front, len(downs), *downs, *ups, *given, *held))


@dataclass(frozen=True)
class _Site:
    """A frozen layer and the factor of what is added to it."""

    layer: products.Layer
    scale: float


class _Changed(torch.autograd.Function):
    """W z + s B A z of z = front(x), for each of some layers; more than one only where each place is one product.

    Of what it computes it keeps nothing: x is kept, and z and A z are made again. With g the gradient by an output and
    u = s B' g: dz = W' g + A' u, dA = u z', dB = s g (A z)'. The A of all layers are one matrix, one under the other;
    where it is the same for all, u is the sum of theirs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sites: Sequence[_Site], front: products.Front | None, own: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.sites, ctx.front, ctx.own = sites, front, own
        ctx.save_for_backward(x, *tensors)
        downs, ups, given, held = _sorted(sites, front, own, tensors)
        z = x if front is None else front.value(x, *given)
        h, ys = _small(sites[0].layer, z, _stack(downs)), []
        for site, up, weight, part in zip(sites, ups, held, _columns(h, downs, sites), strict=True):
            y = products.product(site.layer, z, weight)
            _add(y, site.layer, part, up, site.scale)
            ys.append(y)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, *tensors), sites, front = ctx.saved_tensors, ctx.sites, ctx.front
        downs, ups, given, held = _sorted(sites, front, ctx.own, tensors)
        z, made = (x, ()) if front is None else front.again(x, *given)
        trained = any(ctx.needs_input_grad[4 : 4 + len(downs) + len(ups)])
        down, first = _stack(downs), sites[0].layer
        us: list[Tensor] = []
        d_ups, dz = [], None
        parts = _columns(_small(first, z, down), downs, sites) if trained else [None] * len(sites)
        for site, grad, up, weight, h in zip(sites, grads, ups, held, parts, strict=True):
            rows = products.rows_of(site.layer, grad)
            if us and len(downs) == 1:
                us[0].addmm_(rows, up.flatten(1), alpha=site.scale)
            else:
                us.append(_times(rows, up.flatten(1), site.scale))  # [places, rank]
            d_ups.append(None if h is None else _times(rows.T, h, site.scale).view(up.shape))
            if ctx.needs_input_grad[0]:
                one = products.pullback(site.layer, grad, weight, z.shape)
                dz = one if dz is None else dz.add_(one)
        u = us[0] if len(us) == 1 else torch.cat(us, 1)
        if products.is_pointwise(first):
            d_down = (u.T @ products.rows_of(first, z)).view(down.shape) if trained else None
            if dz is not None:
                _add(dz, first, u, down.flatten(1).T, 1.0)
        else:
            dz, d_down = _through_convolution(first, u, z, down, grads[0].shape, dz, trained)
        if front is not None and dz is not None:
            dz = front.pullback(x, dz, made, *given)
        d_downs = [None] * len(downs) if d_down is None else d_down.split([len(one) for one in downs])
        factors = [*d_downs, *d_ups]
        return dz, None, None, None, *factors, *(None for _ in tensors[len(factors) :])


Sorted = tuple[list[Tensor], list[Tensor], tuple[Tensor, ...], list[tuple[Tensor, ...]]]


def _sorted(sites: Sequence[_Site], front: products.Front | None, own: int, tensors: Sequence[Tensor]) -> Sorted:
    """So many A, the B of each layer, what the front is given, what each frozen layer holds: as `joined` laid them."""
    rest = iter(tensors)
    downs, ups = [next(rest) for _ in range(own)], [next(rest) for _ in sites]
    given = tuple(next(rest) for _ in (() if front is None else front.tensors))
    held = [tuple(next(rest) for _ in products.held(site.layer)) for site in sites]
    return downs, ups, given, held


def _stack(downs: Sequence[Tensor]) -> Tensor:
    return downs[0] if len(downs) == 1 else torch.cat(list(downs))


def _columns(h: Tensor, downs: Sequence[Tensor], sites: Sequence[_Site]) -> Sequence[Tensor]:
    """Of A z what each layer's B is multiplied with."""
    return [h] * len(sites) if len(downs) == 1 else h.split([len(down) for down in downs], 1)


def _through_convolution(
    layer: products.Layer, u: Tensor, z: Tensor, down: Tensor, shape: torch.Size, dz: Tensor | None, trained: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dz with A' u added, and dA, of an output of that shape."""
    assert isinstance(layer, nn.Conv2d)
    pixels = u.view(shape[0], *shape[2:], -1).permute(0, 3, 1, 2)
    which = (dz is not None, trained, False)
    more, d_down, _ = torch.ops.aten.convolution_backward(
        pixels, z, down, None, layer.stride, layer.padding, layer.dilation, False, (0, 0), 1, which
    )
    return None if dz is None else dz.add_(more), d_down


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
    out, inner = products.outline(layer).shape[:2]
    if isinstance(layer, nn.Linear):
        return (rank, inner), (out, rank)
    return (rank, inner, *layer.kernel_size), (out, rank, 1, 1)
