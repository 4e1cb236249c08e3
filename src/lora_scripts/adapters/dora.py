"""DoRA: the lengths of a weight's columns, or rows, are trained apart from its direction (Liu et al. 2024, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_scripts.adapters import products
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import SHORTEST


class DoraLayer(LoraLayer):
    """W' = m * (W + s B A) / |W + s B A|, with one length for each input channel, over all outputs (and the kernel).

    That is the direction whose `dora_scale`, [1, in] or [1, in, 1, 1], the WebUIs read alike. Scaling a column of W' is
    scaling an input, so the layer needs no second weight: y = W (g x) + s B A (g x), g = m / |W + s B A|. The norm
    counts as a constant for the gradient (section 4.3 of the paper).
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, alpha, dropout)
        weight = self.frozen.weight.detach().float()
        self.magnitude = nn.Parameter(self._columns(weight).sum(0).sqrt())

    @staticmethod
    def _columns(weight: Tensor) -> Tensor:
        """[out, in, …] -> squares [out * kernel, in]"""
        return weight.square().transpose(0, 1).flatten(1).T

    def values(self) -> dict[str, nn.Parameter]:
        return super().values() | {"magnitude": self.magnitude}

    def leaves(self) -> dict[str, Tensor]:
        shape = [1, -1, *[1] * (self.frozen.weight.dim() - 2)]
        return super().leaves() | {"dora_scale": self.magnitude.detach().cpu().clone().view(shape)}

    @torch.no_grad()
    def norm(self) -> Tensor:
        """|W + s B A| of each input channel, [in], without forming the sum.

        |w + s B a|^2 = |w|^2 + 2 s (B' w) . a + s^2 a . (B' B) a for each column w of W and a of A.
        """
        weight = self.frozen.weight.detach().float().flatten(1)  # [out, in * k]
        up, down = self.up.flatten(1), self.down.flatten(1)  # [out, r], [r, in * k]
        squares = weight.square().sum(0)
        squares = squares + 2 * self.scale * ((up.T @ weight) * down).sum(0)
        squares = squares + self.scale**2 * ((up.T @ up @ down) * down).sum(0)
        return squares.clamp(min=0).view(self.frozen.weight.shape[1], -1).sum(1).sqrt()

    def forward(self, x: Tensor, *args: object, front: products.Front | None = None) -> Tensor:
        if front is not None:  # the product's input is another tensor
            x = products.keep_input(x, front)
        if self.strength == 0.0:
            plain: Tensor = self.base(x, *args)
            return plain
        gain = self.magnitude / self.norm().clamp(min=SHORTEST)
        linear = isinstance(self.frozen, nn.Linear)
        shaped = gain if linear else gain.view(-1, 1, 1)
        if self.strength == 1.0:
            return self.changed(x * shaped.to(x.dtype))
        # At strength s the weight is W + s (W' - W), as the consumers of the file have it.
        y: Tensor = self.base(x * (1 + self.strength * (shaped - 1)).to(x.dtype), *args)
        return self.add_change(y, x * shaped.to(x.dtype))

    @property
    def shares(self) -> bool:
        return False  # its input is scaled

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        weight = self.frozen.weight.detach().to(dtype)
        changed = weight + super().delta(dtype)
        gain = self.magnitude.detach().to(dtype) / self._columns(changed).sum(0).sqrt().clamp(min=SHORTEST)
        return changed * gain.view(1, -1, *[1] * (weight.dim() - 2)) - weight


class RowDoraLayer(LoraLayer):
    """W' = m * (W + s B A) / |W + s B A|, with one length for each output, over all inputs: PEFT's DoRA.

    y = g (W x + s B A x) + b, g = m / |W + s B A|; the norm counts as a constant for the gradient. Over another adapter
    the changes add up: each is a change of the frozen weight.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, alpha, dropout)
        weight = self.frozen.weight.detach().float().flatten(1)
        self.register_buffer("squares", weight.square().sum(1))
        self.squares: Tensor
        """|w|^2 of each row: those of the frozen weight never change."""
        self.magnitude = nn.Parameter(self.squares.sqrt())

    def values(self) -> dict[str, nn.Parameter]:
        return super().values() | {"magnitude": self.magnitude}

    def leaves(self) -> dict[str, Tensor]:
        shape = [-1, *[1] * (self.frozen.weight.dim() - 1)]
        return super().leaves() | {"dora_scale": self.magnitude.detach().cpu().clone().view(shape)}

    @torch.no_grad()
    def norm(self) -> Tensor:
        """|W + s B A| of each output, [out]: |w + s b A|^2 = |w|^2 + 2 s (A w) . b + s^2 b (A A') b'."""
        weight = self.frozen.weight.detach().flatten(1)
        up, down = self.up.flatten(1), self.down.flatten(1)  # [out, r], [r, in * k]
        squares = self.squares + 2 * self.scale * ((weight.float() @ down.T) * up).sum(1)
        squares = squares + self.scale**2 * ((up @ (down @ down.T)) * up).sum(1)
        return squares.clamp(min=0).sqrt()

    def forward(self, x: Tensor, *args: object, front: products.Front | None = None) -> Tensor:
        if front is not None:  # the product's input is used twice
            x = products.keep_input(x, front)
        if self.strength == 0.0:
            plain: Tensor = self.base(x, *args)
            return plain
        layer = self.frozen
        gain = self.magnitude / self.norm().clamp(min=SHORTEST) - 1
        shape = [-1] if isinstance(layer, nn.Linear) else [-1, 1, 1]
        bias = 0 if layer.bias is None else layer.bias.view(shape).to(x.dtype)
        y = self.changed(x)
        if self.base is layer and self.strength == 1.0:
            whole = y - bias  # W x + s B A x
        else:  # at strength t: t W x + t s B A x, of the frozen weight alone
            whole = self.add_change((layer(x) - bias) * self.strength, x)
        return y + whole * gain.view(shape).to(x.dtype)

    @property
    def shares(self) -> bool:
        return False  # its output is scaled

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        weight = self.frozen.weight.detach().to(dtype)
        changed = weight + super().delta(dtype)
        gain = self.magnitude.detach().to(dtype) / changed.flatten(1).norm(dim=1).clamp(min=SHORTEST)
        return changed * gain.view(-1, *[1] * (weight.dim() - 1)) - weight
