"""Attention by the kernel that is fastest for its width and length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KEPT, MADE_AGAIN = 1 << 21, 1 << 22
"""Scores of a layer (pictures x heads x places x tokens) up to which a CPU keeps their softmax for the backward pass,
and up to which it makes it again: above it, torch's fused kernel is faster (bf16, no matrix units: at 2^21 plain
products took 0.56 of its time, at 77 tokens 0.4 to 0.8, at 2^23 1.2)."""
NARROW, FEW = 16, 1024
"""Channels of a head below which a CPU's fused kernel is slower in float32 too, up to so many places."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(width)) v of q [n, heads, places, width] and k, v [n, heads, tokens, width]."""
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if q.device.type == "cpu" and scores <= MADE_AGAIN and _slow_fused(q):
        y: Tensor = _Plain.apply(q, k, v)
        return y
    return F.scaled_dot_product_attention(q, k, v)


def _slow_fused(q: Tensor) -> bool:
    return q.dtype == torch.bfloat16 or (q.shape[3] <= NARROW and q.shape[2] <= FEW)


class _Plain(torch.autograd.Function):
    """Plain products. The scores are float32 whatever q is: rounded to bf16 they put 1.4 to 2.4 % of error on the
    gradients, in place of 0.2 to 0.5 (the fused kernel has 0.3 to 0.5)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = _flat(q), _flat(k), _flat(v)
        p = _softmax(heads[0], heads[1])
        ctx.save_for_backward(q, k, v, *([p] if p.numel() <= KEPT else []))
        return torch.bmm(p, heads[2]).view(*q.shape[:3], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        whole_q, whole_k, whole_v, *kept = ctx.saved_tensors
        q, k, v, grad = _flat(whole_q), _flat(whole_k), _flat(whole_v), _flat(grads[0])
        p, scale = kept[0] if kept else _softmax(q, k), q.shape[2] ** -0.5
        dv = torch.bmm(p.mT, grad)
        ds = torch._softmax_backward_data(torch.bmm(grad, v.mT), p, -1, p.dtype)
        dq = torch.baddbmm(q, ds, k, beta=0, alpha=scale)
        dk = torch.baddbmm(k, ds.mT, q, beta=0, alpha=scale)
        return dq.view(whole_q.shape), dk.view(whole_k.shape), dv.view(whole_v.shape)


def _flat(x: Tensor) -> Tensor:
    """[n, heads, …] as [n * heads, …]"""
    return x.flatten(0, 1)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.bmm(q.to(wide) * q.shape[2] ** -0.5, k.to(wide).mT)
    return scores.softmax(-1).to(q.dtype)
