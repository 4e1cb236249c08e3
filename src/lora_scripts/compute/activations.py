"""Norms and gates that keep one tensor for the backward pass, and make again what they computed from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_aten = torch.ops.aten


SHORT, SMALL = 16, 1024
"""Channels of a group and places of a map below which a CPU's kernel is slow on channels last: at 16 x 16, 96
channels and batch 4 plain sums take 0.3 of its time."""


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """silu(norm(x)) of x [n, c, h, w]; of a frozen norm x alone is kept, in place of x and of what the norm gives."""
    if norm.weight.requires_grad or torch.compiler.is_compiling():
        return F.silu(norm(x))
    y: Tensor = _Norm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, True)
    return y


def norm_alone(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """norm(x), likewise."""
    if norm.weight.requires_grad or torch.compiler.is_compiling():
        return norm(x)
    y: Tensor = _Norm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, False)
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        x = _laid(x, _layout(x))
        y, mean, rstd = _group_norm(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        inner = _laid(grads[0], _layout(x))  # the kernels take both to lie alike
        if ctx.silu:
            inner = _aten.silu_backward(inner, _group_norm(x, weight, bias, ctx.groups, ctx.eps)[0])
        return _group_norm_back(inner, x, mean, rstd, weight, ctx.groups), None, None, None, None, None


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The norm (Wu & He 2018), mean and 1 / deviation [n, groups]."""
    n, c, h, w = x.shape
    if not _by_sums(x, groups):
        made: tuple[Tensor, Tensor, Tensor] = _aten.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
        return made
    rows = _rows(x)
    mean, square = (of.mean(1).view(n, groups, -1).mean(-1) for of in (rows, rows * rows))
    rstd = (square - mean * mean).clamp_(min=0).add_(eps).rsqrt_()
    factor = _each(rstd, c) * weight
    y = torch.addcmul(bias - _each(mean, c) * factor, rows, factor)
    return _picture(y, x), mean, rstd


def _group_norm_back(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The gradient by x: of g the one by the norm's, times its weight, rstd (g - mean(g) - z mean(g z)), with z what
    the norm gives before weight and bias, and the means those of a group."""
    n, c, h, w = x.shape
    if not _by_sums(x, groups):
        which = (True, False, False)
        dx: Tensor = _aten.native_group_norm_backward(grad, x, mean, rstd, weight, n, c, h * w, groups, which)[0]
        return dx
    rows, grads = _rows(x), _rows(grad)
    first, second = ((of.mean(1) * weight).view(n, groups, -1).mean(-1) for of in (grads, grads * rows))
    slope = rstd * rstd * rstd * (mean * first - second)
    shift = -rstd * first - mean * slope
    part = torch.addcmul(_each(shift, c), rows, _each(slope, c))
    return _picture(part.addcmul_(grads, _each(rstd, c) * weight), x)


def _by_sums(x: Tensor, groups: int) -> bool:
    small = x.shape[1] < SHORT * groups and x.shape[2] * x.shape[3] < SMALL
    return small and _layout(x) == torch.channels_last


def _rows(x: Tensor) -> Tensor:
    """[n, c, h, w] as [n, places, c], in float32 at least."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).to(torch.promote_types(x.dtype, torch.float32))


def _picture(rows: Tensor, like: Tensor) -> Tensor:
    n, c, h, w = like.shape
    return rows.to(like.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def _each(of_groups: Tensor, channels: int) -> Tensor:
    """[n, groups] as [n, 1, channels]."""
    return of_groups.repeat_interleave(channels // of_groups.shape[1], 1).unsqueeze(1)


def _layout(x: Tensor) -> torch.memory_format:
    """That a norm's kernel takes x in: a CPU's knows channels last as well."""
    last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _laid(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=layout)


class Normed:
    """A frozen layer norm, as `adapters.products.Front`."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self._norm = norm  # rather than its tensors, which may be on the card for their turn only

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._norm.weight, self._norm.bias

    def value(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return self.again(x, *tensors)[0]

    def again(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The value; mean and deviation of each place."""
        y, *made = _aten.native_layer_norm(x, self._norm.normalized_shape, *tensors, self._norm.eps)
        return y, tuple(made)

    def pullback(self, x: Tensor, grad: Tensor, made: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        shape, which = self._norm.normalized_shape, (True, False, False)
        dx: Tensor = _aten.native_layer_norm_backward(grad, x, shape, *made, *tensors, which)[0]
        return dx


class Geglu:
    """hidden * gelu(gate) of [..., hidden | gate] (Shazeer 2020), as `adapters.products.Front`."""

    tensors = ()

    def value(self, x: Tensor, *tensors: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, -1)
        opened = F.gelu(gate)
        return opened * hidden if torch.compiler.is_compiling() else opened.mul_(hidden)

    def again(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, gate = x.chunk(2, -1)
        opened = F.gelu(gate)
        return opened * hidden, (opened,)

    def pullback(self, x: Tensor, grad: Tensor, made: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, -1)
        dx = torch.empty_like(x)
        for_hidden, for_gate = dx.chunk(2, -1)
        torch.mul(grad, made[0], out=for_hidden)
        _aten.gelu_backward.grad_input(grad * hidden, gate, grad_input=for_gate)
        return dx
