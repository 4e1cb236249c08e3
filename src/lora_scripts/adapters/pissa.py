"""PiSSA: LoRA that starts from the weight's own principal directions (Meng et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.products import outline
from lora_scripts.adapters.weights import LoraWeights


class PissaLayer(LoraLayer):
    """A and B begin as the largest singular directions of W, and what they began as is taken off again.

    The paper puts W - s B0 A0 in the place of W. Here W stays as it is and the change is s (B A - B0 A0): the same
    function and gradients, no rounding of a 16-bit base, and a file, of twice the rank, for the unmodified base.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.register_buffer("down0", torch.zeros_like(self.down))
        self.register_buffer("up0", torch.zeros_like(self.up))
        self.down0: Tensor
        self.up0: Tensor

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """A = sqrt(S) V', B = U sqrt(S) of the largest `rank` singular values, over the scale (eqs. 2 and 3)."""
        weight = self.frozen.weight.detach().float().cpu().flatten(1)
        u, s, v = _leading(weight, self.rank, generator)
        root = (s / self.scale).sqrt()
        self.up.copy_((u * root).view(self.up.shape))
        self.down.copy_((root[:, None] * v.T).view(self.down.shape))
        self.up0.copy_(self.up)
        self.down0.copy_(self.down)

    def late(self) -> list[nn.Parameter]:
        return []  # neither factor begins at zero

    def factors(self) -> tuple[Tensor, Tensor]:
        """[A; A0] and [B, -B0]: the change as one LoRA of twice the rank."""
        down, up = super().factors()
        return torch.cat([down, self.down0.to(down.dtype)]), torch.cat([up, -self.up0.to(up.dtype)], dim=1)

    def leaves(self) -> dict[str, Tensor]:
        """Factors of the change by its singular values: those of B A - B0 A0 are large and nearly cancel, so that a
        rounding of them would lose a large part of the change."""
        down, up = (t.detach().cpu() for t in self.factors())
        change = factors.svd(factors.of(LoraWeights(down, up, 2.0 * self.alpha)))
        w = factors.as_lora(factors.cut(change, 2 * self.rank), down.shape[1:], self.scale)
        # Twice the rank with twice alpha is the same scale; of a layer with fewer inputs the rank may be less.
        return {"lora_down.weight": w.down.float(), "lora_up.weight": w.up.float(), "alpha": torch.tensor(w.alpha)}

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        down, up = (t.detach().to(dtype).flatten(1) for t in self.factors())
        return (self.scale * (up @ down)).view(outline(self.frozen).shape)


def _leading(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, rank], S [rank], V [in, rank] by randomised subspace iteration (Halko et al. 2011, algorithm 4.4), or
    exactly where that is no more work."""
    if rank * 4 >= min(weight.shape):
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank].T
    wide = min(rank + 16, min(weight.shape))
    q = torch.linalg.qr(weight @ torch.randn(weight.shape[1], wide, generator=generator)).Q
    for _ in range(8):
        q = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ q).Q).Q
    u, s, vh = torch.linalg.svd(q.T @ weight, full_matrices=False)
    return (q @ u)[:, :rank], s[:rank], vh[:rank].T
