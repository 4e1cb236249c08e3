"""How a frozen layer multiplies, forward and back. Its weight gets no gradient, so nothing of its input is kept."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

Layer = nn.Linear | nn.Conv2d


def cpu_has_matrix_units() -> bool:
    """AMX."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


FEW_PLACES = 256 if cpu_has_matrix_units() else 128
"""Pixels of a batch up to which a CPU multiplies a 3 x 3 convolution faster as a matrix: at 64 pixels of 1280 channels
in 0.55 of the time, at 16 in a third, at 256 in 1.05 (bf16, no matrix units). With matrix units at 256 in 0.73 of the
time forward and 0.57 back, of 640 channels in 0.83 and 0.65; at 1024 in 0.79 to 1, of 640 in 1.2 to 1.4."""
FEW_ROWS = 64
"""Rows up to which a CPU reads a large matrix faster as the first of a product in bf16 than as the second: with matrix
units at 16 rows in 0.5 to 0.8 of the time, at 64 in 0.7 to 0.97, at 256 no more; without them in 0.8 to 0.95."""
LARGE = 1 << 19
"""Numbers of a weight from which both are so: of 64 channels, convolutions as matrices take up to twice the time."""


def held(layer: Layer) -> tuple[Tensor, ...]:
    """The tensors that a layer's products need: its weight, or what a layer that stores it otherwise names."""
    other = getattr(layer, "held", None)
    return (layer.weight,) if other is None else other()


def whole(layer: Layer, tensors: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """The weight that the tensors of `held` stand for."""
    other = getattr(layer, "whole", None)
    return tensors[0] if other is None else other(*tensors, dtype)


def outline(layer: Layer) -> Tensor:
    """A tensor of the weight's shape, type and device, for who needs no numbers, which some layers have to make."""
    other: Tensor | None = getattr(layer, "outline", None)
    return layer.weight if other is None else other


def product(layer: Layer, x: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """The layer's output, never a view: adapters add to it in place. Not for autograd. `tensors`: as `held` gives."""
    if (own := getattr(layer, "own_product", None)) is not None:
        y: Tensor = own(x, *tensors)
        return y
    weight = whole(layer, tensors, x.dtype)
    if isinstance(layer, nn.Linear):
        y, rows = x.new_empty(*x.shape[:-1], weight.shape[0]), x.reshape(-1, x.shape[-1])
        _multiply(rows, weight, layer.bias, y.view(-1, y.shape[-1]))
        return y
    if not _as_matrix(layer, x, x.shape, weight):
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    places = _places(x, layer)
    (n, high, wide), out = places.shape[:3], weight.shape[0]
    y = torch.empty((n, out, high, wide), dtype=x.dtype, memory_format=torch.channels_last)
    _multiply(places.flatten(0, 2).flatten(1), _matrix(weight), layer.bias, y.permute(0, 2, 3, 1).view(-1, out))
    return y


def pullback(layer: Layer, grad: Tensor, tensors: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """The gradient by the layer's input, of that shape, from the one by its output. Not for autograd."""
    if (own := getattr(layer, "own_pullback", None)) is not None:
        dx: Tensor = own(grad, *tensors)
        return dx
    weight = whole(layer, tensors, grad.dtype)
    if isinstance(layer, nn.Linear):
        return (grad.reshape(-1, grad.shape[-1]) @ weight).view(shape)
    if not _as_matrix(layer, grad, shape, weight):
        return conv2d_input(shape, weight, grad, layer.stride, layer.padding, layer.dilation, layer.groups)
    n, c, h, w = shape
    (kh, kw), (sh, sw), (ph, pw) = _geometry(layer)
    rows = grad.permute(0, 2, 3, 1)
    high, wide = rows.shape[1:3]
    spread = rows.reshape(-1, rows.shape[-1]) @ _matrix(weight)
    if (kh, kw, sh, sw, ph, pw) == (1, 1, 1, 1, 0, 0):
        return spread.view(n, h, w, c).permute(0, 3, 1, 2)
    spread = spread.view(n, high, wide, kh, kw, c)
    padded = spread.new_zeros(n, h + 2 * ph, w + 2 * pw, c)
    for i in range(kh):
        for j in range(kw):
            padded[:, i : i + sh * high : sh, j : j + sw * wide : sw].add_(spread[:, :, :, i, j])
    return padded[:, ph : ph + h, pw : pw + w].permute(0, 3, 1, 2)


def rows_of(layer: Layer, x: Tensor) -> Tensor:
    """[..., channels] of a linear layer, or [n, channels, h, w] of a convolution, as [places, channels]."""
    return x.reshape(-1, x.shape[-1]) if isinstance(layer, nn.Linear) else x.permute(0, 2, 3, 1).flatten(0, 2)


def is_pointwise(layer: Layer) -> bool:
    """Whether each place of the output depends on one of the input alone."""
    return isinstance(layer, nn.Linear) or _geometry(layer) == ((1, 1), (1, 1), (0, 0))


class Front(Protocol):
    """Something cheap before a product, computed again in the backward pass from what it was given."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its own frozen tensors, which all methods are handed."""
        ...

    def value(self, x: Tensor, *tensors: Tensor) -> Tensor: ...

    def again(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The value, and what was computed on the way that `pullback` needs."""
        ...

    def pullback(self, x: Tensor, grad: Tensor, made: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        """The gradient by x, from the one by the value. `made`: as `again` gives."""
        ...


def keep_input(x: Tensor, front: Front) -> Tensor:
    """The front's value, with a gradient for x, which alone is kept; compiled, the compiler sees to that."""
    if torch.compiler.is_compiling():
        return front.value(x, *front.tensors)
    y: Tensor = _KeepInput.apply(x, front, *front.tensors)
    return y


class _KeepInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, front: Front, *tensors: Tensor) -> Tensor:
        ctx.front = front
        ctx.save_for_backward(x, *tensors)
        return front.value(x, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        made = ctx.front.again(x, *tensors)[1]
        return ctx.front.pullback(x, grads[0], made, *tensors), None, *(None for _ in tensors)


class FrozenConv2d(nn.Conv2d):
    """An `nn.Conv2d` that keeps nothing of its input; made by `freeze_convolution`. A trained one is as it was."""

    def forward(self, x: Tensor, *args: object) -> Tensor:
        if torch.compiler.is_compiling() or self.weight.requires_grad:
            return super().forward(x)
        return multiply(self, x)


def freeze_convolution(layer: nn.Conv2d) -> None:
    """In place: paths and parents stay as they are."""
    layer.__class__ = FrozenConv2d


def multiply(layer: Layer, x: Tensor) -> Tensor:
    """The output of a frozen layer, with a gradient for x."""
    if torch.compiler.is_compiling():
        weight = whole(layer, held(layer), x.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    y: Tensor = _Product.apply(x, layer, *held(layer))
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *tensors: Tensor) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape
        # The tensors rather than the layer's own later on: a block may have left the card by then.
        ctx.save_for_backward(*tensors)
        return product(layer, x, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, (grad,) = ctx.saved_tensors, grads
        dx = pullback(ctx.layer, grad, tensors, ctx.size)
        return dx, None, *(None for _ in tensors)


# --- convolutions as matrices -----------------------------------------------------------------------------------------

Pair = tuple[int, int]


def _geometry(layer: nn.Conv2d) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and padding, (down, across)."""
    kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
    assert not isinstance(padding, str)
    return (kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1])


def _as_matrix(layer: nn.Conv2d, given: Tensor, shape: torch.Size, weight: Tensor) -> bool:
    """Whether the product is made as that of two matrices: channels lie innermost, so that little is moved.

    `given`: what is multiplied, forward or back; `shape`: of the layer's input.
    """
    if weight.device.type != "cpu" or layer.groups != 1 or isinstance(layer.padding, str) or layer.dilation != (1, 1):
        return False
    if is_pointwise(layer):
        return given.stride(1) == 1
    few = shape[0] * shape[2] * shape[3] <= FEW_PLACES and weight.numel() >= LARGE
    return few and weight.is_contiguous(memory_format=torch.channels_last)


def _matrix(weight: Tensor) -> Tensor:
    """[out, in, kh, kw] as [out, kh * kw * in]"""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _places(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """What each place of the output sees of x: a view [n, h', w', kh, kw, c]."""
    (kh, kw), (sh, sw), (ph, pw) = _geometry(layer)
    padded = x.permute(0, 2, 3, 1)
    if ph or pw:
        padded = F.pad(padded, (0, 0, pw, pw, ph, ph))
    n, h, w, c = padded.shape
    one, down, across, deep = padded.stride()
    shape = (n, (h - kh) // sh + 1, (w - kw) // sw + 1, kh, kw, c)
    return padded.as_strided(shape, (one, down * sh, across * sw, down, across, deep))


def _multiply(rows: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """rows @ matrix' + bias"""
    few = len(rows) <= FEW_ROWS and matrix.numel() >= LARGE
    if few and rows.dtype == torch.bfloat16 and rows.device.type == "cpu":
        lying = torch.mm(matrix, rows.T) if bias is None else torch.addmm(bias.unsqueeze(1), matrix, rows.T)
        out.copy_(lying.T)
    elif bias is None:
        torch.mm(rows, matrix.T, out=out)
    else:
        torch.addmm(bias, rows, matrix.T, out=out)
