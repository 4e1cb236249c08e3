"""LoHa, LoKr and OFT, as lycoris-lora keeps them in files. What a module's change is stands here, as that library's own
forward pass computes it: its `get_diff_weight` (4.1.3) multiplies LoHa and LoKr by alpha / rank twice. The library, an
optional package, is asked only for the shapes and the start of a new module.

LoHa (Hyeon-Woo et al. 2022): ΔW = (alpha / rank) · (A₁ B₁) ∘ (A₂ B₂). LoKr (Yeh et al. 2024): ΔW = (alpha / rank) ·
W₁ ⊗ W₂, where either may be a product of two factors, and alpha counts only then. OFT (Qiu et al. 2023): W' = Rᵀ W with
R block-diagonal, R = (I + Q) (I - Q)⁻¹, Q = B - Bᵀ. A convolution's weight is taken as the matrix [out, in · k · k];
with a Tucker core T a matrix is Σ T[i, j, …] · a[i, out] · b[j, in] instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters.layer import Adapter
from lora_scripts.adapters.products import outline
from lora_scripts.adapters.weights import finite
from lora_scripts.errors import UserError

KINDS = ("loha", "lokr", "oft")
Leaves = Mapping[str, Tensor]
"""The tensors of one module, by the library's names."""


def kind_of(leaves: Leaves) -> str:
    """One of KINDS. UserError for leaves that are of none, or not all that it takes."""
    if leaves.keys() >= {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} and _pairs(leaves, "hada_t1", "hada_t2"):
        return "loha"
    if all(f"lokr_{w}" in leaves or leaves.keys() >= {f"lokr_{w}_a", f"lokr_{w}_b"} for w in ("w1", "w2")):
        return "lokr"
    if "oft_blocks" in leaves and leaves["oft_blocks"].dim() == 3:
        return "oft"
    if "oft_blocks" in leaves and leaves["oft_blocks"].dim() == 4:
        raise UserError("a BOFT, which is not read here", hint="merge it with the program that made it")
    raise UserError(f"no whole LoHa, LoKr or OFT: {', '.join(leaves)}", hint="get the original file")


def check(name: str, leaves: Leaves) -> None:
    """UserError unless the leaves are one module's, fit each other, and every value is a finite number."""
    if "dora_scale" in leaves:
        text = f"{name} is a {kind_of(leaves)} with lengths of its own (dora_scale), which is not read"
        raise UserError(text, hint="give one without weight_decompose")
    try:
        shape_of(leaves)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", hint=error.hint) from None
    except (RuntimeError, IndexError, ValueError):
        shapes = ", ".join(f"{leaf} {list(tensor.shape)}" for leaf, tensor in leaves.items())
        raise UserError(f"{name}: {shapes} do not fit each other", hint="get the original file") from None
    if not all(finite(tensor) for tensor in leaves.values()):
        raise UserError(f"{name} holds values that are not finite numbers", hint="the file is spoilt")


def without_idle_alpha(leaves: Leaves) -> dict[str, Tensor]:
    """The same without an alpha that is no number and counts for nothing: in a LoKr of two whole matrices, which
    ai-toolkit gives an alpha of ten thousand million, more than fp16 holds."""
    whole = "lokr_w1" in leaves and "lokr_w2" in leaves
    return {leaf: own for leaf, own in leaves.items() if not (whole and leaf == "alpha" and not finite(own))}


def shape_of(leaves: Leaves) -> tuple[int, int | None]:
    """(out, in · k · k) of the weight that the module changes; an OFT goes on any number of inputs."""
    if kind_of(leaves) == "oft":
        count, size, columns = leaves["oft_blocks"].shape
        if size != columns:
            raise ValueError("no blocks of a rotation")
        return count * size, None
    rows = {leaf: torch.empty(tensor.shape, device="meta") for leaf, tensor in leaves.items() if leaf != "alpha"}
    change = _loha(rows) if "hada_w1_a" in rows else _lokr(rows)
    return change.shape[0], change.shape[1]


def rank_of(leaves: Leaves) -> int | None:
    """Of the factors; None where there is none: of an OFT, and of a LoKr whose factors are whole."""
    return next((len(leaves[leaf]) for leaf in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if leaf in leaves), None)


def changes(leaves: Leaves) -> bool:
    """Whether the module changes any weight."""
    kind = kind_of(leaves)
    if kind == "oft":
        return bool((leaves["oft_blocks"] != leaves["oft_blocks"].transpose(1, 2)).any()) or "rescale" in leaves
    own = {leaf: tensor.float() for leaf, tensor in leaves.items()}
    factors = _lokr_factors(own) if kind == "lokr" else (_loha(own),)
    return _scale(kind, own) != 0 and all(bool(factor.any()) for factor in factors)


def change_of(leaves: Leaves, weight: Tensor) -> Tensor:
    """ΔW of a frozen weight [out, in, …], in its shape and the leaves' type; differentiable."""
    kind = kind_of(leaves)
    if kind == "oft":
        return _oft(leaves, weight)
    change = _loha(leaves) if kind == "loha" else _lokr(leaves)
    return (_scale(kind, leaves) * change).reshape(weight.shape)


def matrix(leaves: Leaves) -> Tensor:
    """The change without the weight that it is made to: ΔW as a matrix [out, in · k · k], of an OFT R - I, block under
    block, and a column of its rescale less one.
    """
    kind = kind_of(leaves)
    if kind != "oft":
        return _scale(kind, leaves) * (_loha(leaves) if kind == "loha" else _lokr(leaves))
    r = rotation(leaves)
    turned = (r - torch.eye(r.shape[1], dtype=r.dtype, device=r.device)).flatten(0, 1)
    return torch.cat([turned, leaves["rescale"].reshape(-1, 1) - 1], dim=1) if "rescale" in leaves else turned


def _scale(kind: str, leaves: Leaves) -> float:
    """alpha / rank; 1 where there is no alpha, or no rank."""
    rank = rank_of(leaves)
    return float(leaves["alpha"]) / rank if rank and "alpha" in leaves else 1.0


def _loha(leaves: Leaves) -> Tensor:
    """(A₁ B₁) ∘ (A₂ B₂), [out, in · k · k]."""
    a1, b1, a2, b2 = (leaves[f"hada_{factor}"] for factor in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if "hada_t1" in leaves:
        return (_tucker(leaves["hada_t1"], a1, b1) * _tucker(leaves["hada_t2"], a2, b2)).flatten(1)
    product: Tensor = _Hadamard.apply(a1, b1, a2, b2) if a1.requires_grad else (a1 @ b1) * (a2 @ b2)
    return product


class _Hadamard(torch.autograd.Function):
    """(a1 @ b1) * (a2 @ b2), of which only the factors are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1) * (a2 @ b2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        first, second = grads[0] * (a2 @ b2), grads[0] * (a1 @ b1)
        return first @ b1.T, a1.T @ first, second @ b2.T, a2.T @ second


def _lokr(leaves: Leaves) -> Tensor:
    """W₁ ⊗ W₂, [out, in · k · k]."""
    w1, w2 = _lokr_factors(leaves)
    # Row by row of both: in of W₂ and the kernel lie side by side, so the kernel may be flattened first.
    return torch.kron(w1, w2.flatten(1))


def _lokr_factors(leaves: Leaves) -> tuple[Tensor, Tensor]:
    w1 = leaves["lokr_w1"] if "lokr_w1" in leaves else leaves["lokr_w1_a"] @ leaves["lokr_w1_b"]
    if "lokr_w2" in leaves:
        return w1, leaves["lokr_w2"]
    a, b = leaves["lokr_w2_a"], leaves["lokr_w2_b"]
    return w1, _tucker(leaves["lokr_t2"], a, b) if "lokr_t2" in leaves else a @ b.flatten(1)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ij...,io,jn->on...", core, a, b)


def rotation(leaves: Leaves) -> Tensor:
    """R of an OFT, [blocks, size, size]. An alpha above 0 is the bound of |Q|, over the number of outputs."""
    blocks = leaves["oft_blocks"]
    q = blocks - blocks.transpose(1, 2)
    bound = float(leaves["alpha"]) * blocks.shape[0] * blocks.shape[1] if "alpha" in leaves else 0.0
    norm = q.norm() + 1e-8
    if bound > 0 and norm > bound:
        q = q * (bound / norm)
    eye = torch.eye(q.shape[1], dtype=q.dtype, device=q.device)
    return (eye + q) @ (eye - q).inverse()


def _oft(leaves: Leaves, weight: Tensor) -> Tensor:
    r = rotation(leaves)
    count, size = r.shape[:2]
    frozen = weight.to(r.dtype)
    eye = torch.eye(size, dtype=r.dtype, device=r.device)
    change = torch.einsum("knm,kni->kmi", r - eye, frozen.reshape(count, size, -1)).reshape(weight.shape)
    if "rescale" in leaves:
        scale = leaves["rescale"].view(-1, *[1] * (weight.dim() - 1))
        change = scale * (frozen + change) - frozen
    return change


def _pairs(leaves: Leaves, first: str, second: str) -> bool:
    return (first in leaves) == (second in leaves)


def _modules() -> dict[str, Any]:
    """Our name -> the library's module."""
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    # What it says of each size of an OFT's blocks would stand in the result, on stdout.
    logging.getLogger("LyCORIS").setLevel(logging.WARNING)
    return {"loha": LohaModule, "lokr": LokrModule, "oft": DiagOFTModule}


class LycorisLayer(Adapter):
    """The frozen layer's output plus that of the weight change, in the input's dtype."""

    def __init__(self, base: nn.Module, kind: str, rank: int, alpha: float) -> None:
        super().__init__(base)
        # OFT has no alpha.
        scale = {} if kind == "oft" else {"alpha": alpha}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of what it draws, `reset` keeps the spread, which shall be the same in every run
            start = _modules()[kind]("", self.frozen, lora_dim=rank, bypass_mode=False, **scale)
        self._take(start.state_dict())
        self.rank, self.alpha = rank, alpha

    @classmethod
    def of_leaves(cls, base: nn.Module, leaves: Leaves) -> LycorisLayer:
        """The layer that a file describes. UserError where the leaves are none of a module."""
        check("the module", leaves)
        layer = cls.__new__(cls)
        Adapter.__init__(layer, base)
        layer._take(leaves)
        layer.rank, layer.alpha = 0, float(leaves["alpha"]) if "alpha" in leaves else 0.0
        return layer

    def _take(self, leaves: Leaves) -> None:
        device = outline(self.frozen).device
        own = {leaf: tensor.detach().to(device, torch.float32) for leaf, tensor in leaves.items()}
        self.fixed = {"alpha": own.pop("alpha").cpu()} if "alpha" in own else {}
        self.trained = nn.ParameterDict({leaf: nn.Parameter(tensor.clone()) for leaf, tensor in own.items()})

    def values(self) -> dict[str, nn.Parameter]:
        return dict(self.trained.items())

    def leaves(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in {**self.fixed, **self.values()}.items()}

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
        return change_of({**self.fixed, **self.values()}, self.frozen.weight)

    @torch.no_grad()
    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        own = {leaf: tensor.detach().to(dtype) for leaf, tensor in {**self.fixed, **self.values()}.items()}
        return change_of(own, self.frozen.weight)
