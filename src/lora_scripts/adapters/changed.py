"""What frozen layers with LoRAs beside them give of one input, as one function, there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters import products


@dataclass(frozen=True)
class Site:
    """A frozen layer and the factor of what is added to it."""

    layer: products.Layer
    scale: float


def changed(
    x: Tensor, sites: Sequence[Site], factors: Sequence[tuple[Tensor, Tensor]], front: products.Front | None = None
) -> list[Tensor]:
    """What each of the layers gives of front(x), with its change; `factors`: A and B of each. They all have one A, or
    each its own."""
    downs = [down.to(x.dtype) for down in {id(down): down for down, _ in factors}.values()]
    ups = [up.to(x.dtype) for _, up in factors]
    held = [t for site in sites for t in products.held(site.layer)]
    given: tuple[Tensor, ...] = () if front is None else front.tensors
    return list(_Changed.apply(x, sites, front, len(downs), *downs, *ups, *given, *held))


class _Changed(torch.autograd.Function):
    """W z + s B A z of z = front(x), for each of some layers; more than one only where each place is one product.

    Of what it computes it keeps nothing: x is kept, and z and A z are made again. With g the gradient by an output and
    u = s B' g: dz = W' g + A' u, dA = u z', dB = s g (A z)'. The A of all layers are one matrix, one under the other;
    where it is the same for all, u is the sum of theirs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sites: Sequence[Site], front: products.Front | None, own: int, *tensors: Tensor
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


def _sorted(sites: Sequence[Site], front: products.Front | None, own: int, tensors: Sequence[Tensor]) -> Sorted:
    """So many A, the B of each layer, what the front is given, what each frozen layer holds: as `changed` laid them."""
    rest = iter(tensors)
    downs, ups = [next(rest) for _ in range(own)], [next(rest) for _ in sites]
    given = tuple(next(rest) for _ in (() if front is None else front.tensors))
    held = [tuple(next(rest) for _ in products.held(site.layer)) for site in sites]
    return downs, ups, given, held


def _stack(downs: Sequence[Tensor]) -> Tensor:
    return downs[0] if len(downs) == 1 else torch.cat(list(downs))


def _columns(h: Tensor, downs: Sequence[Tensor], sites: Sequence[Site]) -> Sequence[Tensor]:
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
