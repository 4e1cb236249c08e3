"""The UNet of Stable Diffusion 1.x, 2.x and XL, frozen: what a layout says, by the names that diffusers has for it.

It computes what diffusers' UNet2DConditionModel does (Rombach et al. 2022; Podell et al. 2023), which tests hold it
against, but keeps less for the backward pass: of a norm its input, of a gate what it is made of. And it is here at
once: importing the library's takes as long as all else of a start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters.layer import alike
from lora_scripts.adapters.products import Front
from lora_scripts.compute.activations import Geglu, Normed, norm_alone, norm_silu
from lora_scripts.compute.attention import attend
from lora_scripts.families.sd.unet import GROUPS, RESNETS, UnetLayout

EPS = 1e-5
"""Of the norms of residual blocks and of the last one."""
EPS_IN = 1e-6
"""Of the norm before a transformer."""
PERIOD = 10_000
"""Of the slowest wave of a sinusoidal embedding, over 2 pi."""


class Unet(nn.Module):
    """Noised latents, noise levels and text states to the answer."""

    def __init__(self, layout: UnetLayout) -> None:
        super().__init__()
        self.layout = layout
        widths, time = layout.widths, 4 * layout.widths[0]
        self.conv_in = _convolution(layout.in_channels, widths[0])
        self.time_embedding = Embedding(widths[0], time)
        self.add_embedding = Embedding(layout.class_width, time) if layout.class_width else None
        self.down_blocks: Any = nn.ModuleList()
        self.up_blocks: Any = nn.ModuleList()
        given, skips = widths[0], [widths[0]]
        levels = list(zip(widths, layout.depths, layout.heads, strict=True))
        for n, (width, depth, heads) in enumerate(levels):
            last = n == len(levels) - 1
            self.down_blocks.append(
                Level([given] + [width] * (RESNETS - 1), width, time, depth, heads, layout, down=not last)
            )
            given = width
            skips += [width] * (RESNETS + (not last))
        self.mid_block = Level([given, given], given, time, layout.middle_depth, layout.heads[-1], layout, middle=True)
        for n, (width, depth, heads) in enumerate(reversed(levels)):
            beside = [skips.pop() for _ in range(RESNETS + 1)]
            into = [below + own for below, own in zip([given] + [width] * RESNETS, beside, strict=True)]
            self.up_blocks.append(Level(into, width, time, depth, heads, layout, up=n < len(levels) - 1))
            given = width
        self.conv_norm_out = nn.GroupNorm(GROUPS, given, EPS)
        self.conv_out = _convolution(given, layout.out_channels)

    def forward(self, x: Tensor, t: Tensor, states: Tensor, added: Mapping[str, Tensor] | None = None) -> Tensor:
        """[n, c, h, w] of latents [n, c, h, w], noise levels [n] or [] and text states [n, tokens, width]; `added`, of
        XL: "text_embeds" [n, pooled] and "time_ids" [n, 6]."""
        time = self.time_embedding(waves(t.expand(len(x)), self.layout.widths[0]).to(x.dtype))
        if self.add_embedding is not None:
            assert added is not None
            sizes = waves(added["time_ids"].flatten(), self.layout.size_width).reshape(len(x), -1)
            told = torch.cat([added["text_embeds"], sizes], -1)
            time = time + self.add_embedding(told.to(time.dtype))
        x = self.conv_in(x)
        kept = [x]
        for level in self.down_blocks:
            for number, resnet in enumerate(level.resnets):
                x = level.attended(number, resnet(x, time), states)
                kept.append(x)
            for sampler in level.downsamplers:
                x = sampler(x)
                kept.append(x)
        first, second = self.mid_block.resnets
        x = second(self.mid_block.attended(0, first(x, time), states), time)
        for level in self.up_blocks:
            for number, resnet in enumerate(level.resnets):
                x = level.attended(number, resnet(torch.cat([x, kept.pop()], 1), time), states)
            for sampler in level.upsamplers:
                x = sampler(x, kept[-1].shape[2:])
        out: Tensor = self.conv_out(norm_silu(x, self.conv_norm_out))
        return out


class Level(nn.Module):
    """Residual blocks of one width, the transformer behind each, and the way to the next level."""

    def __init__(
        self,
        given: Sequence[int],
        width: int,
        time: int,
        depth: int,
        heads: int,
        layout: UnetLayout,
        *,
        down: bool = False,
        middle: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        count = (1 if middle else len(given)) if depth else 0
        self.attentions = nn.ModuleList(Transformer(width, depth, heads, layout) for _ in range(count))
        self.resnets = nn.ModuleList(Resnet(one, width, time) for one in given)
        self.downsamplers = nn.ModuleList([Downsampler(width)] if down else [])
        self.upsamplers = nn.ModuleList([Upsampler(width)] if up else [])

    def attended(self, number: int, x: Tensor, states: Tensor) -> Tensor:
        """What the transformer behind a residual block gives, where there is one."""
        out: Tensor = self.attentions[number](x, states) if len(self.attentions) else x
        return out


class Resnet(nn.Module):
    """A residual block that keeps the inputs of its norms and nothing else."""

    def __init__(self, given: int, width: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, given, EPS), _convolution(given, width)
        self.time_emb_proj = nn.Linear(time, width)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, width, EPS), _convolution(width, width)
        self.conv_shortcut = nn.Conv2d(given, width, 1) if given != width else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(norm_silu(x, self.norm1)) + self.time_emb_proj(F.silu(time))[:, :, None, None]
        hidden = self.conv2(norm_silu(hidden, self.norm2))
        out: Tensor = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + hidden
        return out


class Transformer(nn.Module):
    """Blocks over the places of a map, which read the text."""

    def __init__(self, width: int, depth: int, heads: int, layout: UnetLayout) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, EPS_IN)
        self.proj_in = nn.Linear(width, width) if layout.linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(Block(width, heads, layout.context_width) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if layout.linear else nn.Conv2d(width, width, 1)
        self.linear = layout.linear

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        n, c, h, w = x.shape
        # Channels innermost from here on, whatever x is, so that a place is a row of all products without a copy.
        hidden = norm_alone(x, self.norm).contiguous(memory_format=torch.channels_last)
        if not self.linear:
            hidden = self.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).reshape(n, h * w, c)
        if self.linear:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, states)
        if self.linear:
            hidden = self.proj_out(hidden)
        hidden = hidden.reshape(n, h, w, c).permute(0, 3, 1, 2)
        return x + (hidden if self.linear else self.proj_out(hidden))  # laid as the first is


class Block(nn.Module):
    """Attention of the places to each other and to the text, and a gated layer: the inputs of its norms are kept."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, width, heads)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, context, heads)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        x = x + self.attn1(x, None, Normed(self.norm1))
        x = x + self.attn2(x, states, Normed(self.norm2))
        out: Tensor = x + self.ff(x, Normed(self.norm3))
        return out


class Attention(nn.Module):
    """The published formula, by the kernel that `compute.attention` chooses."""

    def __init__(self, width: int, told: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(given, width, bias=False) for given in (width, told, told))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, told: Tensor | None, front: Front) -> Tensor:
        """Of front(x) to itself, or to what is told."""
        if told is None:
            projected = alike(x, [self.to_q, self.to_k, self.to_v], front)
        else:
            projected = [*alike(x, [self.to_q], front), *alike(told, [self.to_k, self.to_v])]
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        out: Tensor = self.to_out[0](attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """A gated layer that keeps what its first product gives, and not the gated half of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = nn.Linear(width, 8 * width)
        self.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor, front: Front) -> Tensor:
        gate: Any = self.net[0]
        (inner,) = alike(x, [gate.proj], front)
        (out,) = alike(inner, [self.net[2]], Geglu())
        return out


class Embedding(nn.Module):
    """Of the noise level, or of what is told besides."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(given, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class Downsampler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsampler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _convolution(width, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """To the size of the level above, which need not be twice as much."""
        if 4 * x.numel() > 2**31:  # torch's kernel for channels last counts in 32 bits (pytorch issue 141831)
            x = x.contiguous()
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out


def waves(numbers: Tensor, width: int) -> Tensor:
    """[n, width] float32 of numbers [n]: cosines, then sines, from the quickest wave to the slowest (Vaswani et al.
    2017, in the order of CompVis' `timestep_embedding`)."""
    half = width // 2
    exponents = -math.log(PERIOD) * torch.arange(half, dtype=torch.float32, device=numbers.device) / half
    angles = numbers[:, None].float() * torch.exp(exponents)[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


def _convolution(given: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(given, width, 3, padding=1)
