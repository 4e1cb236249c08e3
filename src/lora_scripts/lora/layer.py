"""LoRA layers: dW = (alpha / rank) * B @ A beside a frozen layer (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraLayer(nn.Module):
    """A frozen `nn.Linear` or `nn.Conv2d` (or another LoraLayer around one) with a low-rank change beside it.

    `down` is A: [rank, in] or [rank, in, kh, kw]; `up` is B: [out, rank] or [out, rank, 1, 1]; both float32, whatever
    the base is kept in. They are cast to the input's dtype for the two small products, so nothing is upcast and, with
    the base frozen, autograd keeps only the input and the rank-wide product.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base, self.rank, self.alpha, self.dropout = base, rank, alpha, dropout
        self.strength = 1.0
        layer = self.frozen
        device = layer.weight.device
        down, up = lora_shapes(layer, rank)
        self.down = nn.Parameter(torch.zeros(down, device=device))
        self.up = nn.Parameter(torch.zeros(up, device=device))

    @property
    def frozen(self) -> nn.Linear | nn.Conv2d:
        """The innermost layer, under any number of LoRAs."""
        base = self.base
        while isinstance(base, LoraLayer):
            base = base.base
        assert isinstance(base, nn.Linear | nn.Conv2d)
        return base

    @property
    def weight(self) -> Tensor:
        """The frozen weight; code that asks a layer for its dtype or device finds it here."""
        return self.frozen.weight

    @property
    def bias(self) -> Tensor | None:
        return self.frozen.bias

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def reset(self, generator: torch.Generator) -> None:
        """A uniform in +-1/sqrt(fan in) (Kaiming with a = sqrt(5), as `nn.Linear`), B zero: the change is exactly 0."""
        bound = 1 / math.sqrt(self.down[0].numel())
        start = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.down.copy_(start)
            self.up.zero_()

    def forward(self, x: Tensor, *args: object) -> Tensor:
        y: Tensor = self.base(x, *args)
        if self.strength == 0.0:
            return y
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        # The factor goes onto the smallest tensor of the three: B.
        down, up = self.down.to(x.dtype), (self.up * (self.scale * self.strength)).to(x.dtype)
        layer = self.frozen
        # In place: a sum may lie otherwise in memory than y (at 1 x 1 pixel), and what follows then rounds otherwise.
        if isinstance(layer, nn.Linear):
            return y.add_(F.linear(F.linear(x, down), up))
        h = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return y.add_(F.conv2d(h, up))

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """dW in the shape of the frozen weight, strength not counted."""
        up, down = self.up.detach().to(dtype), self.down.detach().to(dtype)
        return (self.scale * (up.flatten(1) @ down.flatten(1))).view(self.frozen.weight.shape)


def lora_shapes(layer: nn.Linear | nn.Conv2d, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B for a layer."""
    out, inner = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        return (rank, inner), (out, rank)
    return (rank, inner, *layer.kernel_size), (out, rank, 1, 1)
