"""What a LoRA loses in another number format, told module by module before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.dtypes import WORDS, in_torch
from lora_scripts.errors import UserError, raise_all
from lora_scripts.units import percent

DTYPES = {word: in_torch(name) for word, name in WORDS.items()}
"""Word on the command line -> dtype."""
DESTROYED = 0.5
"""A module whose ΔW would be off by more than this share of its norm is refused."""


@dataclass(frozen=True)
class Loss:
    """What the rounding costs."""

    worst: float
    """Largest |ΔW rounded - ΔW| / |ΔW| of any module (Frobenius norms)."""
    where: str
    """The module of `worst`; "" when nothing is lost."""
    vanished: int
    """Values that were not zero and are now."""
    total: int

    def __str__(self) -> str:
        if not self.where:
            return "no bit is lost"
        lost = f"; {self.vanished:,} of {self.total:,} values round to zero" if self.vanished else ""
        return f"ΔW is off by at most {self.worst:.1e} of its size ({self.where}){lost}"


def cast(modules: Mapping[str, LoraWeights], dtype: torch.dtype) -> tuple[dict[str, LoraWeights], Loss]:
    """The modules in `dtype`, and what that costs. UserErrors where a value overflows or a module would be destroyed.

    For fp8 the sizes of the two factors are balanced first by a power of two, which changes no digit of ΔW and keeps
    both inside its narrow range.
    """
    result, errors = {}, []
    worst, where, vanished, total = 0.0, "", 0, 0
    for path, w in modules.items():
        w = _balanced(w) if dtype.itemsize == 1 else w
        got = replace(w, down=w.down.to(dtype), up=w.up.to(dtype))  # lengths of a DoRA keep their digits
        result[path] = got
        if _overflows(w, got):
            hint = "use bf16 or fp32, whose range is wider"
            errors.append(UserError(f"{path} holds values too large for {word_of(dtype)}", hint=hint))
            continue
        if _wider(dtype, w.down.dtype) and _wider(dtype, w.up.dtype):
            continue
        for before, after in ((w.down, got.down), (w.up, got.up)):
            total += before.numel()
            vanished += int(((after.float() == 0) & (before.float() != 0)).sum())
        want, have = factors.of(w), factors.of(got)
        size = factors.norm(want)
        off = factors.distance(want, have) / size if size else 0.0
        if off > worst:
            worst, where = off, path
        if off > DESTROYED:
            text = f"{word_of(dtype)} would destroy {path}: ΔW off by {percent(off)} of its size"
            errors.append(UserError(text, hint="use bf16 or fp16"))
    raise_all(errors[:10])
    return result, Loss(worst, where, vanished, total)


def _balanced(w: LoraWeights) -> LoraWeights:
    """Moves a power of two from one factor to the other, so that their largest values are alike."""
    down, up = w.down.float(), w.up.float()
    most_down, most_up = down.abs().max().item(), up.abs().max().item()
    if not (most_down and most_up and math.isfinite(most_down) and math.isfinite(most_up)):
        return w
    shift = 2.0 ** round(math.log2(most_down / most_up) / 2)
    return replace(w, down=down / shift, up=up * shift)


def _overflows(before: LoraWeights, after: LoraWeights) -> bool:
    return _lost_finite(before.down, after.down) or _lost_finite(before.up, after.up)


def _lost_finite(before: Tensor, after: Tensor) -> bool:
    """Also where the rounding saturates: fp8 has no infinity."""
    limit = torch.finfo(after.dtype).max * (1 + torch.finfo(after.dtype).eps / 2)
    return not bool(torch.isfinite(after.float()).all()) or bool((before.double().abs() >= limit).any())


def _wider(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether every value of `other` is one of `dtype`."""
    a, b = torch.finfo(dtype), torch.finfo(other)
    return a.eps <= b.eps and a.max >= b.max and a.smallest_normal * a.eps <= b.smallest_normal * b.eps


def word_of(dtype: torch.dtype) -> str:
    """As in `DTYPES`; of another type torch's own name."""
    return next((word for word, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))
