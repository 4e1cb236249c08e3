"""Group norms that train quickly on a CPU in channels-last: torch's own backward takes half of a VAE's step there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F


class _Norm(torch.autograd.Function):
    """silu(group_norm(x)), or without silu. The backward is a few whole passes over [n, h w, c] in the input's dtype,
    with sums in float32 at least: with x' = (x - mean) / deviation and G, H the means of g w and g w x' over a group,
    dx = (g w - G - x' H) / deviation (Wu and He 2018, and the derivative of batch norm)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        n, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
        ctx.save_for_backward(x, y, weight, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return F.silu(y) if silu else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, rstd = ctx.saved_tensors
        g = torch.ops.aten.silu_backward(grads[0], y) if ctx.silu else grads[0]
        (n, c, h, w), wide = x.shape, x.shape[1] // ctx.groups
        exact = torch.promote_types(x.dtype, torch.float32)
        flat_x, flat_g = (t.permute(0, 2, 3, 1).reshape(n, h * w, c) for t in (x, g))
        scale, middle = (t.to(exact).repeat_interleave(wide, 1) for t in (rstd, mean))
        sums = flat_g.sum(1, dtype=exact)
        along = ((flat_g * flat_x).sum(1, dtype=exact) - middle * sums) * scale  # of g x'

        def over_group(values: Tensor) -> Tensor:
            means = (values * weight.to(exact)).view(n, -1, wide).sum(-1) / (wide * h * w)
            return means.repeat_interleave(wide, 1)

        of_x = -scale * scale * over_group(along)
        rest = -scale * over_group(sums) - of_x * middle
        of_g = scale * weight.to(exact)
        rest, of_x, of_g = (t[:, None].to(x.dtype) for t in (rest, of_x, of_g))
        dx = torch.addcmul(torch.addcmul(rest, flat_x, of_x), flat_g, of_g).view(n, h, w, c).permute(0, 3, 1, 2)
        return dx, along.sum(0).to(weight.dtype), sums.sum(0).to(weight.dtype), None, None, None


def quicken(model: nn.Module) -> None:
    """Gives the norms of a diffusers autoencoder or UNet this backward; where nothing but a norm feeds it, the silu
    behind it goes with the norm (in a UNet's blocks the embedded timestep goes through the same one)."""
    fused = set()
    for part in model.modules():
        if isinstance(part, ResnetBlock2D) and part.time_emb_proj is None:
            part.nonlinearity = nn.Identity()
            fused |= {part.norm1, part.norm2}
        elif isinstance(getattr(part, "conv_norm_out", None), nn.GroupNorm):
            part.conv_act = nn.Identity()
            fused.add(part.conv_norm_out)
    for norm in model.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.forward = _forward(norm, norm in fused)  # type: ignore[method-assign]


def _forward(norm: nn.GroupNorm, silu: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if x.dim() != 4:  # a VAE's attention norms [n, c, h w]
            return nn.GroupNorm.forward(norm, x)
        return _Norm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)

    return forward
