"""LoRA layers: dW = (alpha / rank) * B @ A beside a frozen layer (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """A frozen `nn.Linear` or `nn.Conv2d` (or another adapter around one) with a trained change beside it.

    A subclass says how the change is computed; whoever trains, saves and exports knows only what stands here.
    """

    rank: int
    alpha: float

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.strength, self.dropout = base, 1.0, 0.0

    @property
    def frozen(self) -> nn.Linear | nn.Conv2d:
        """The innermost layer, under any number of adapters."""
        base = self.base
        while isinstance(base, Adapter):
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

    def values(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, float32."""
        raise NotImplementedError

    def late(self) -> list[nn.Parameter]:
        """Those of `values` that begin at zero, so that the change does: LoRA+ moves them faster (its B)."""
        return []

    def leaves(self) -> dict[str, Tensor]:
        """What a file holds of this layer, by the leaf of its key; on the CPU, float32, independent of the layer."""
        raise NotImplementedError

    def reset(self, generator: torch.Generator) -> None:
        """A start at which the change is exactly 0."""
        raise NotImplementedError

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """dW in the shape of the frozen weight, strength not counted."""
        raise NotImplementedError

    def place(self, device: torch.device) -> None:
        """Moves all but the frozen layer, which may live elsewhere."""
        base = self.__dict__["_modules"].pop("base")
        self.to(device)
        self.base = base

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copies values in, by the names of `values()`."""
        for name, p in self.values().items():
            p.copy_(values[name].reshape(p.shape))


class LoraLayer(Adapter):
    """`down` is A: [rank, in] or [rank, in, kh, kw]; `up` is B: [out, rank] or [out, rank, 1, 1].

    Both are float32, whatever the base is kept in. They are cast to the input's dtype for the two small products, so
    nothing is upcast and, with the base frozen, autograd keeps only the input and the rank-wide product.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        device = self.frozen.weight.device
        down, up = lora_shapes(self.frozen, rank)
        self.down = nn.Parameter(torch.zeros(down, device=device))
        self.up = nn.Parameter(torch.zeros(up, device=device))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def values(self) -> dict[str, nn.Parameter]:
        return {"down": self.down, "up": self.up}

    def late(self) -> list[nn.Parameter]:
        return [self.up]

    def leaves(self) -> dict[str, Tensor]:
        kept = {"lora_down.weight": self.down, "lora_up.weight": self.up}
        return {n: t.detach().cpu().clone() for n, t in kept.items()} | {"alpha": torch.tensor(float(self.alpha))}

    def reset(self, generator: torch.Generator) -> None:
        """A uniform in +-1/sqrt(fan in) (Kaiming with a = sqrt(5), as `nn.Linear`), B zero."""
        bound = 1 / math.sqrt(self.down[0].numel())
        start = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.down.copy_(start)
            self.up.zero_()

    def forward(self, x: Tensor, *args: object) -> Tensor:
        y: Tensor = self.base(x, *args)
        if self.strength == 0.0:
            return y
        return self.add_change(y, x, self.down, self.up)

    def add_change(self, y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """y + strength * scale * B A x, in place."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        # The factor goes onto the smallest tensor of the three: B.
        down, up = down.to(x.dtype), (up * (self.scale * self.strength)).to(x.dtype)
        layer = self.frozen
        # In place: a sum may lie otherwise in memory than y (at 1 x 1 pixel), and what follows then rounds otherwise.
        if isinstance(layer, nn.Linear):
            return y.add_(F.linear(F.linear(x, down), up))
        h = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return y.add_(F.conv2d(h, up))

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        up, down = self.up.detach().to(dtype), self.down.detach().to(dtype)
        return (self.scale * (up.flatten(1) @ down.flatten(1))).view(self.frozen.weight.shape)


def lora_shapes(layer: nn.Linear | nn.Conv2d, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B for a layer."""
    out, inner = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        return (rank, inner), (out, rank)
    return (rank, inner, *layer.kernel_size), (out, rank, 1, 1)
