"""Norms and gates that keep one tensor for the backward pass, and make again what they computed from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_aten = torch.ops.aten


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """silu(norm(x)) of x [n, c, h, w]; of a frozen norm x alone is kept, in place of x and of what the norm gives."""
    if norm.weight.requires_grad or torch.compiler.is_compiling():
        return F.silu(norm(x))
    y: Tensor = _NormSilu.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return y


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, c, h, w = x.shape
        x = _laid(x, _layout(x))
        y, mean, rstd = _aten.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        n, c, h, w = x.shape
        y = _aten.native_group_norm(x, weight, bias, n, c, h * w, ctx.groups, ctx.eps)[0]
        inner = _aten.silu_backward(_laid(grads[0], _layout(x)), y)  # the kernel takes both to lie alike
        which = (True, False, False)
        dx = _aten.native_group_norm_backward(inner, x, mean, rstd, weight, n, c, h * w, ctx.groups, which)[0]
        return dx, None, None, None, None


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
