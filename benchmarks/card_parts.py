"""Pieces of a step on a graphics card, one by one: what this project's choices there rest on.

    python benchmarks/card_parts.py

Milliseconds, the median of 20 after 5: attention by each kernel, forward and back; products in 8 bits with the second
matrix laid either way, beside bf16; the same convolutions in both layouts; a launch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.grad import conv2d_input

CARD = torch.device("cuda")


def ms(act: Callable[[], object], times: int = 20) -> float:
    taken = []
    for n in range(times + 5):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        act()
        torch.cuda.synchronize()
        if n >= 5:
            taken.append(1000 * (time.perf_counter() - begun))
    return median(taken)


def attention(n: int, heads: int, places: int, tokens: int, width: int) -> None:
    q = torch.randn(n, heads, places, width, device=CARD, dtype=torch.bfloat16, requires_grad=True)
    k, v = (
        torch.randn(n, heads, tokens, width, device=CARD, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)
    )
    g = torch.randn_like(q)
    told = [f"attention {n} x {heads} x {places} x {tokens} x {width}:"]
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(kernel):
                forward = ms(lambda: F.scaled_dot_product_attention(q, k, v))
                both = ms(lambda: torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), g))
            told.append(f"{kernel.name.lower()} {forward:.3f} / {both:.3f}")
        except RuntimeError as error:
            told.append(f"{kernel.name.lower()} {str(error)[:60]}")
    print(*told, sep="  ", flush=True)


def products(rows: int, inner: int, out: int) -> None:
    x = torch.randn(rows, inner, device=CARD, dtype=torch.bfloat16)
    w = torch.randn(out, inner, device=CARD, dtype=torch.bfloat16)
    g = torch.randn(rows, out, device=CARD, dtype=torch.bfloat16)
    a, b, c = ((10 * t).to(torch.int8) for t in (x, w, g))
    turned = b.T.contiguous()
    told = {
        "bf16 forward": ms(lambda: x @ w.T),
        "bf16 back": ms(lambda: g @ w),
        "int8 forward": ms(lambda: torch._int_mm(a, b.T)),
        "int8 back": ms(lambda: torch._int_mm(c, b)),
        "int8 back, turned before": ms(lambda: torch._int_mm(c, turned.T)),
        "turning": ms(lambda: b.T.contiguous()),
    }
    print(f"product {rows} x {inner} x {out}:", *(f"{name} {t:.3f}" for name, t in told.items()), sep="  ", flush=True)


def convolution(n: int, channels: int, side: int) -> None:
    told = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(n, channels, side, side, device=CARD, dtype=torch.bfloat16).to(memory_format=layout)
        w = torch.randn(channels, channels, 3, 3, device=CARD, dtype=torch.bfloat16).to(memory_format=layout)
        forward = ms(lambda x=x, w=w: F.conv2d(x, w, padding=1))  # type: ignore[misc]
        back = ms(lambda x=x, w=w: conv2d_input(x.shape, w, x, padding=1))  # type: ignore[misc]
        told.append(f"{layout} {forward:.3f} / {back:.3f}")
    print(f"convolution {n} x {channels} x {side}:", *told, sep="  ", flush=True)


def main() -> None:
    one = torch.zeros(1, device=CARD)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    print(torch.cuda.get_device_name(), torch.__version__, f"a launch {ms(launches):.2f} us", flush=True)
    for n in (1, 4):
        for shape in ((8, 4096, 4096, 40), (8, 4096, 77, 40), (8, 1024, 1024, 80), (8, 256, 256, 160)):
            attention(n, *shape)
    attention(1, 10, 4096, 4096, 64)
    attention(1, 24, 4608, 4608, 128)
    for rows, inner, out in ((4096, 3072, 12288), (4608, 3072, 3072), (4096, 640, 5120), (16384, 320, 320)):
        products(rows, inner, out)
    for n in (1, 16):
        for channels, side in ((320, 64), (640, 32), (1280, 16), (1280, 8)):
            convolution(n, channels, side)


if __name__ == "__main__":
    main()
