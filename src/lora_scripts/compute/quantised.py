"""Frozen layers whose weight is stored in 8 or 4 bits: made whole again for each product, forward and backward, or
multiplied with in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters.products import multiply
from lora_scripts.errors import UserError

Storage = Literal["fp8", "int8", "nf4", "w8a8"]
LARGEST = {"fp8": torch.finfo(torch.float8_e4m3fn).max, "int8": 127.0, "w8a8": 127.0}
"""What the largest weight of an output channel becomes: 448, 127."""
FEW_ROWS = 16
"""Up to so many rows a card's product in 8 bits refuses its work (cuBLASLt)."""
NF4_BLOCK = 64
"""Weights that share a scale (Dettmers et al. 2023, section 3)."""


def quantise(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight [out, …]; no code is of a floating type, so that no cast of a model changes it.

    fp8 (E4M3), int8 and w8a8, symmetric: codes in the weight's shape, a float32 scale for each output channel. nf4, by
    bitsandbytes: two codes a byte, a scale for each 64 weights. ValueError for a weight that is not finite.
    """
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        raise ValueError("a weight is not a finite number")
    if storage == "nf4":
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
        return packed, state.absmax
    # A scale that is exact in bf16 makes products there quick and exact; 127.25 and 448.9 still round to 127 and 448.
    scale = (weight.abs().flatten(1).amax(1) / LARGEST[storage]).bfloat16().float()
    scale = torch.where(scale > 0, scale, 1.0).view(-1, *[1] * (weight.dim() - 1))
    if storage == "fp8":
        return (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale
    return (weight / scale).round().to(torch.int8), scale


def dequantise(codes: Tensor, scale: Tensor, storage: Storage, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight that codes stand for, rounded once to `dtype`."""
    if storage == "nf4":
        from bitsandbytes.functional import QuantState, dequantize_4bit

        # As one row: with rows that 64 does not divide, its CPU kernel (0.50) takes the scales of other blocks.
        state = QuantState(scale, torch.Size([shape.numel()]), None, NF4_BLOCK, "nf4", dtype)
        return dequantize_4bit(codes, state).view(shape)
    # Every code is exact in 16 bits, and every scale in bf16; in fp16 a small one is not, so it stays as it is.
    values = (codes.view(torch.float8_e4m3fn) if storage == "fp8" else codes).to(dtype)
    scale = scale if dtype == torch.float16 else scale.to(dtype)
    if torch.compiler.is_compiling():  # which knows no `out` that lies otherwise, as a convolution's may
        return (values * scale).to(dtype)
    return torch.mul(values, scale, out=values)


class StoredLayer(nn.Module):
    """A frozen layer that keeps something smaller than its weight, of which the weight is made at each use."""

    shape: torch.Size
    """Of the weight."""
    dtype: torch.dtype
    """That the model computes in."""
    codes: Tensor

    def whole(self, *held: Any) -> Tensor:
        """The weight, of what `held` gives and the type that it shall have."""
        raise NotImplementedError

    def held(self) -> tuple[Tensor, ...]:
        """What is kept for the backward pass: not the weight that it stands for."""
        return (self.codes,)

    def forward(self, x: Tensor, *args: object) -> Tensor:
        return multiply(self, x)  # type: ignore[arg-type]  # it is one, by its other parent

    @property
    def weight(self) -> Tensor:
        """Made anew at each call; see `outline`."""
        return self.whole(*self.held(), self.dtype)

    @property
    def outline(self) -> Tensor:
        """Of the weight's shape, type and device, without its numbers."""
        return self.codes.new_empty((), dtype=self.dtype).expand(self.shape)


class QuantisedLayer(StoredLayer):
    """What both kinds of layer have in common; made by `quantise_layer`."""

    storage: Storage
    scale: Tensor

    def whole(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return dequantise(codes, scale, self.storage, self.shape, dtype)

    def held(self) -> tuple[Tensor, ...]:
        return self.codes, self.scale

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A type that the model is cast to is not one for the scales.
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.codes.device)
        return self


class QuantisedLinear(QuantisedLayer, nn.Linear):  # type: ignore[override]  # its weight cannot be set
    """An `nn.Linear` with a rounded weight."""


class QuantisedConv2d(QuantisedLayer, nn.Conv2d):  # type: ignore[override]  # likewise
    """An `nn.Conv2d` with a rounded weight."""


class MultipliedLinear(QuantisedLinear):
    """One that multiplies codes with codes: what it is given is rounded to 8 bits, too, each row by its own largest
    number (W8A8, dynamic; Dettmers et al. 2022, section 2.1). So is the gradient on its way back."""

    def forward(self, x: Tensor, *args: object) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = _InCodes.apply(x, self.codes, self.scale)
        return y if self.bias is None else y + self.bias

    def own_product(self, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        y = in_codes(x, codes, scale)
        return y if self.bias is None else y.add_(self.bias)

    def own_pullback(self, grad: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        return back_in_codes(grad, codes, scale)


class _InCodes(torch.autograd.Function):
    """For a compiler, which knows no layers here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return in_codes(x, codes, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors
        return back_in_codes(grads[0], codes, scale), None, None


def in_codes(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x [..., in] by the transposed weight that codes [out, in] and scale [out, 1] stand for, in x's type."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= FEW_ROWS:
        return F.linear(x, dequantise(codes, scale, "w8a8", codes.shape, x.dtype))
    own, by_row = rounded(rows)
    y = torch._int_mm(own, codes.T).float() * by_row * scale.view(1, -1)
    # No view of it for autograd, which lets nobody add to one in place.
    whole: Tensor = torch.ops.aten._unsafe_view(y.to(x.dtype), [*x.shape[:-1], len(codes)])
    return whole


def back_in_codes(grad: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """grad [..., out] by that weight, in its type."""
    rows = grad.reshape(-1, grad.shape[-1])
    if len(rows) <= FEW_ROWS:
        return grad @ dequantise(codes, scale, "w8a8", codes.shape, grad.dtype)
    own, by_row = rounded(rows.float() * scale.view(1, -1))
    # A card's kernels read the second matrix column by column; of one that lies by rows they are seven times slower.
    turned = codes.T.contiguous().T if codes.device.type == "cuda" else codes
    return (torch._int_mm(own, turned).float() * by_row).to(grad.dtype).view(*grad.shape[:-1], -1)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of rows [n, width], and the float32 scale of each [n, 1]."""
    wide = rows.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * 256) / 127.0
    return (wide / scale).round().to(torch.int8), scale


class ScaledLinear(StoredLayer, nn.Linear):  # type: ignore[override]  # its weight cannot be set
    """An `nn.Linear` whose weight stays as it lies in its file, in float8 beside what it is multiplied with; made by
    `lend`."""

    kind: torch.dtype
    """Of its codes, which are seen as bytes."""
    scale: Tensor

    def whole(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return scaled(codes.view(self.kind), scale).to(dtype)

    def held(self) -> tuple[Tensor, ...]:
        return self.codes, self.scale


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """In float32 what float8 numbers [out, …] stand for, by one scale or one for each of their rows."""
    each = scale.float().reshape(-1, *[1] * (weight.dim() - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return weight.float() * each


def lend(layer: nn.Linear, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    """Puts float8 numbers and their scale in the place of a weight, until `restore`; `dtype`: that the model computes
    in."""
    del layer.weight
    layer.__class__ = ScaledLinear  # as `quantise_layer` does
    layer.register_buffer("codes", weight.view(torch.uint8))
    layer.register_buffer("scale", scale.float())
    layer.kind, layer.shape, layer.dtype = weight.dtype, weight.shape, dtype  # type: ignore[assignment]


def restore(layer: nn.Module) -> None:
    """Makes the weight of a layer whole that `lend` had; of others nothing."""
    if not isinstance(layer, ScaledLinear):
        return
    weight, plain = layer.weight, cast("Any", layer)
    for name in ("codes", "scale", "kind", "shape", "dtype"):
        delattr(plain, name)
    plain.__class__ = nn.Linear
    plain.weight = nn.Parameter(weight, requires_grad=False)


KINDS: dict[type[nn.Module], type[QuantisedLayer]] = {nn.Linear: QuantisedLinear, nn.Conv2d: QuantisedConv2d}


def kind_of(layer: nn.Module, storage: Storage) -> type[QuantisedLayer] | None:
    """What a layer becomes; None: it stays as it is."""
    if storage != "w8a8":
        return KINDS.get(type(layer))
    # The kernels know sides that 8 divides; and a convolution is no product of two matrices.
    fits = type(layer) is nn.Linear and layer.in_features % 8 == 0 and layer.out_features % 8 == 0
    return MultipliedLinear if fits else None


def quantise_layer(layer: nn.Module, storage: Storage, dtype: torch.dtype) -> None:
    """Rounds an `nn.Linear` or `nn.Conv2d` in place, for good; whoever holds it need not know."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    codes, scale = quantise(weight, storage)
    kind = kind_of(layer, storage)
    assert kind is not None
    del layer.weight
    layer.__class__ = kind  # as torch's own parametrisations do: paths and parents stay as they are
    layer.register_buffer("codes", codes)
    layer.register_buffer("scale", scale)
    layer.storage, layer.shape, layer.dtype = storage, weight.shape, dtype  # type: ignore[assignment]


def quantise_layers(model: nn.Module, blocks: Sequence[nn.Module], storage: Storage, dtype: torch.dtype) -> None:
    """Rounds every linear and convolution layer in these blocks of a model (w8a8: every linear one), and restores the
    others. UserError naming one that is not finite."""
    inside = {id(layer) for block in blocks for layer in block.modules()}
    for path, layer in model.named_modules():
        restore(layer)
        if id(layer) in inside and kind_of(layer, storage) is not None:
            try:
                quantise_layer(layer, storage, dtype)
            except ValueError as error:
                raise UserError(f"{path}: {error}", hint="take another base model, this one is broken") from None
