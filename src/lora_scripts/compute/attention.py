"""Attention by the kernel that is fastest for its width and length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_scripts.adapters.products import cpu_has_matrix_units

KEPT, MADE_AGAIN = 1 << 21, 1 << 22
"""Scores of a layer (pictures x heads x places x tokens) up to which a CPU keeps their softmax for the backward pass,
and up to which it makes it again: above it, torch's fused kernel is faster (bf16, no matrix units: at 2^21 plain
products took 0.56 of its time, at 77 tokens 0.4 to 0.8, at 2^23 1.2)."""
NARROW, FEW = 16, 1024
"""Channels of a head below which a CPU's fused kernel is slower in float32 too, up to so many places."""
MANY, ROWS = 512, 512
"""Tokens from which a CPU takes scores in parts, and the places of a part, whose scores stay near the core: at 4096
places 0.70 to 0.82 of the fused kernel's time, at 1024 0.90 to 0.98."""
MOST, SLIM = 2048, 80
"""Tokens from which that is quicker with matrix units, too, and channels of a head up to which it is."""
FLAT = 9.0
"""Variance of a place's scores, on average, up to which they are kept in bf16 about their middle: their gradients are
off by 0.3 to 0.7 % then, 0.9 to 1.9 times as much as the fused kernel's; of 36 by 1 to 2.2 %, 1.6 to 5 times."""

HOPPER = (9, 0)
"""Compute capability of the cards on which cuDNN's attention was measured to be the quicker one: forward and back in
0.57 of the flash kernel's time at 4096 places of 40 channels, 0.53 at 4608 of 128. By their sources newer torch begins
with it there of itself, older does not."""
WIDE = 128
"""Channels of a head above which it is not: at 256 places of 160 it takes twice as long."""

HALVES = (torch.bfloat16, torch.float16)

_cudnn_leads = False
"""Whether `quickest_attention` put it first; a plain truth, which a compiler can look at."""


@cache
def cudnn_first(device: torch.device) -> bool:
    """Whether a device is such a card."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER


@contextmanager
def quickest_attention(device: torch.device) -> Iterator[None]:
    """Within it `scaled_dot_product_attention` on a card begins with cuDNN's kernel where that is quicker, and goes on
    to the others for what it cannot do; and it is called so that cuDNN's backward pass is right (`_AsLaid`). What is
    made again in a backward pass must be so by the same kernel, so this is to be around both."""
    if device.type != "cuda":
        yield
        return
    global _cudnn_leads
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    before, first = (F.scaled_dot_product_attention, _cudnn_leads), cudnn_first(device)
    F.scaled_dot_product_attention, _cudnn_leads = laid, first
    try:
        with sdpa_kernel(order, set_priority=True) if first else nullcontext():
            yield
    finally:
        F.scaled_dot_product_attention, _cudnn_leads = before


_torchs = F.scaled_dot_product_attention


def laid(*args: Any, **kwargs: Any) -> Tensor:
    """As torch's."""
    y: Tensor = _torchs(*args, **kwargs)
    if y.requires_grad:
        y = _AsLaid.apply(y)
    return y


class _AsLaid(torch.autograd.Function):
    """The same, with a gradient that lies in memory as it does.

    torch keeps what it made for cuDNN's backward pass by the layouts of q, k and v, and not by that of the gradient
    (torch 2.11, `MHAParams`), so that one that lies otherwise is read with another's strides: beyond its end, or
    wrongly. Models meet it of which some blocks have the gradient as a piece of a wider one, and others have it whole.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.strides = y.stride()
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        if grad.stride() == ctx.strides:
            return grad
        return torch.empty_strided(grad.shape, ctx.strides, dtype=grad.dtype, device=grad.device).copy_(grad)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(width)) v of q [n, heads, places, width] and k, v [n, heads, tokens, width]."""
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if q.device.type == "cpu" and scores <= MADE_AGAIN and _slow_fused(q):
        y: Tensor = _Plain.apply(q, k, v)
        return y
    if q.device.type == "cpu" and _flat_in_bf16(q, k):
        y = _InParts.apply(q, k, v)
        return y
    if _cudnn_leads and q.dtype in HALVES and WIDE < q.shape[3] <= 256 and q.shape[3] % 8 == 0:
        y = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        return y
    return F.scaled_dot_product_attention(q, k, v)


def _slow_fused(q: Tensor) -> bool:
    return q.dtype == torch.bfloat16 or (q.shape[3] <= NARROW and q.shape[2] <= FEW)


def _flat_in_bf16(q: Tensor, k: Tensor) -> bool:
    units = cpu_has_matrix_units()
    if q.dtype != torch.bfloat16 or k.shape[2] < (MOST if units else MANY) or (units and q.shape[3] > SLIM):
        return False
    with torch.no_grad():
        return bool(_scores(_flat(q), _flat(k))[1].mean() <= FLAT)


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


class _InParts(torch.autograd.Function):
    """Plain products in q's own type, some places at a time, of scores about their middle. Nothing but q, k and v is
    kept. What is narrow is computed lying, [width, tokens], which is quicker, and added up in float32. Matrix units
    are used well by the fused kernel's forward pass, and not by its backward one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        if cpu_has_matrix_units():
            return F.scaled_dot_product_attention(q, k, v)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for head, places, tokens, lying in zip(
            _flat(out), *_about_middle(_flat(q), _flat(k)), _flat(v).mT, strict=True
        ):
            for some, p in _softmaxes(places, tokens):
                head[some] = torch.mm(lying, p.mT).mT
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        whole = ctx.saved_tensors
        flat = [_flat(x) for x in (*whole, grads[0])]
        wide = torch.promote_types(whole[0].dtype, torch.float32)
        dq, (dk, dv) = torch.empty_like(flat[0]), (torch.zeros(x.mT.shape, dtype=wide) for x in flat[1:3])
        for n, (places, tokens) in enumerate(zip(*_about_middle(*flat[:2]), strict=True)):
            q, k, v, grad = (x[n] for x in flat)
            room = torch.empty(min(ROWS, len(q)), len(k), dtype=q.dtype)
            for some, p in _softmaxes(places, tokens):
                dv[n] += torch.mm(grad[some].mT, p)
                ds = torch.mm(grad[some], v.mT, out=room[: len(p)])
                torch._softmax_backward_data(ds, p, -1, p.dtype, grad_input=ds)
                torch.mm(ds, k, out=dq[n, some])
                dk[n] += torch.mm(q[some].mT, ds)
        scale = flat[0].shape[2] ** -0.5
        dk, dv = (x.mul_(by).mT.to(q.dtype) for x, by in ((dk, scale), (dv, 1.0)))
        return dq.mul_(scale).view(whole[0].shape), dk.view(whole[1].shape), dv.view(whole[2].shape)


def _about_middle(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """[n, places, width], [n, tokens, width] -> the same with one more channel, whose products are the scores less
    that score of each place about which its softmax lies: rounded, those that count are off least.

    Were the scores of a place normal, their mean as the softmax weighs them would be mean + variance. That number may
    be rounded: it is the same for all scores of a place.
    """
    mean, variance = _scores(q, k)
    places = torch.cat([q * q.shape[2] ** -0.5, (-mean - variance).to(q.dtype)], -1)
    return places, torch.cat([k, torch.ones_like(k[..., :1])], -1)


def _scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [n, places, 1] of each place's scores, by the mean and covariance of k."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide) * q.shape[2] ** -0.5, k.to(wide)
    mean = k.mean(1, keepdim=True)
    spread = torch.bmm((k - mean).mT, k - mean) / k.shape[1]
    return torch.bmm(q, mean.mT), (torch.bmm(q, spread) * q).sum(-1, keepdim=True)


def _softmaxes(q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """ROWS places of a head at a time, and the softmax of their scores [places, tokens], good until the next."""
    room = torch.empty(min(ROWS, len(q)), len(k), dtype=q.dtype)
    for first in range(0, len(q), ROWS):
        some = slice(first, first + ROWS)
        p = torch.mm(q[some], k.mT, out=room[: len(q[some])])
        yield some, torch._softmax(p, -1, False, out=p)


def _flat(x: Tensor) -> Tensor:
    """[n, heads, …] as [n * heads, …]"""
    return x.flatten(0, 1)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.bmm(q.to(wide) * q.shape[2] ** -0.5, k.to(wide).mT)
    return scores.softmax(-1).to(q.dtype)
