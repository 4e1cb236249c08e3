"""LoHa, LoKr and OFT, by the library that their users know: lycoris-lora. An optional package, imported when needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters.layer import Adapter

KINDS = ("loha", "lokr", "oft")


def modules() -> dict[str, Any]:
    """Our name -> the library's module."""
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    return {"loha": LohaModule, "lokr": LokrModule, "oft": DiagOFTModule}


class LycorisLayer(Adapter):
    """The frozen layer's output plus that of the library's weight change, in the input's dtype."""

    def __init__(self, base: nn.Module, kind: str, rank: int, alpha: float) -> None:
        super().__init__(base)
        # bypass_mode=False: the change as a weight, the one form that all three have. OFT has no alpha.
        scale = {} if kind == "oft" else {"alpha": alpha}
        self._take(modules()[kind]("", self.frozen, lora_dim=rank, bypass_mode=False, **scale))
        self.rank, self.alpha = rank, alpha

    @classmethod
    def of_leaves(cls, base: nn.Module, leaves: Mapping[str, Tensor]) -> LycorisLayer:
        """The layer that a file describes. ValueError where the library does not know the leaves."""
        layer = cls.__new__(cls)
        Adapter.__init__(layer, base)
        named = {f".{leaf}": value.float() for leaf, value in leaves.items()}
        for kind in modules().values():
            if kind.algo_check(named, ""):
                with torch.no_grad():  # it fills parameters in place
                    made = kind.make_module_from_state_dict("", layer.frozen, *kind.extract_state_dict(named, ""))
                layer._take(made)
                layer.rank, layer.alpha = 0, float(leaves["alpha"]) if "alpha" in leaves else 0.0
                return layer
        raise ValueError(f"no LoHa, LoKr or OFT: {', '.join(leaves)}")

    def _take(self, change: nn.Module) -> None:
        self.change: Any = change.to(self.frozen.weight.device, torch.float32)

    def values(self) -> dict[str, nn.Parameter]:
        return dict(self.change.named_parameters())

    def leaves(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.change.state_dict().items()}

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """As the library begins, but from our generator: what is not zero is drawn again with the same spread."""
        for p in self.values().values():
            spread = p.std() if p.numel() > 1 else p.abs().max()
            if p.any():
                p.copy_(torch.randn(p.shape, generator=generator) * spread.item())

    def forward(self, x: Tensor, *args: object) -> Tensor:
        y: Tensor = self.base(x, *args)
        if self.strength == 0.0:
            return y
        change = (self._change() * self.strength).to(x.dtype)
        layer = self.frozen
        if isinstance(layer, nn.Linear):
            return y.add_(F.linear(x, change))
        return y.add_(F.conv2d(x, change, None, layer.stride, layer.padding, layer.dilation))

    def _change(self) -> Tensor:
        change: Tensor = self.change.get_diff_weight(multiplier=1.0, shape=tuple(self.frozen.weight.shape))[0]
        return change.view(self.frozen.weight.shape)

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._change().detach().to(dtype)
