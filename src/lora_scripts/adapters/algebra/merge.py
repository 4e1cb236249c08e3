"""LoRAs into a base's weights and out of them again: the sums, in float64, rounded once. No files here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_scripts.adapters.algebra import bake, factors
from lora_scripts.adapters.algebra.factors import Factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError

# Of a half step above the leading digit: an ordinary number x is off by at most |x| times this after rounding.
UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float8_e4m3fn: 2.0**-4,
    torch.float8_e5m2: 2.0**-3,
}
# Half of the step between the numbers that are too small to be ordinary.
TINY = {
    torch.float64: 2.0**-1075,
    torch.float32: 2.0**-150,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-134,
    torch.float8_e4m3fn: 2.0**-10,
    torch.float8_e5m2: 2.0**-17,
}


_ENTRIES = 1 << 18  # at a time: 2 MiB of float64


@dataclass
class Rounding:
    """What rounding did to the weights that were changed."""

    largest: float = 0.0
    """|rounded - exact| of the worst entry."""
    bound: float = 0.0
    """The most that merging and taking out again can leave in an entry."""
    count: int = 0
    """Entries."""
    _bounds: float = 0.0
    _error: float = 0.0
    _change: float = 0.0

    def add(self, exact: Tensor, rounded: Tensor, before: Tensor, change: float) -> None:
        """One weight: what it should be, what it became, what it was, and |ΔW|²."""
        became = rounded.double()
        error = (became - exact).abs()
        limit = error_bound(became, rounded.dtype) + error_bound(before, rounded.dtype)
        self.largest = max(self.largest, error.max().item())
        self.bound = max(self.bound, limit.max().item())
        self.count += error.numel()
        self._bounds += limit.sum().item()
        self._error += (error**2).sum().item()
        self._change += change

    @property
    def mean_bound(self) -> float:
        return self._bounds / self.count if self.count else 0.0

    @property
    def lost(self) -> float:
        """|rounding error| / |ΔW| over everything that was changed: how much of the LoRA the type swallowed."""
        return math.sqrt(self._error / self._change) if self._change else 0.0


def error_bound(values: Tensor, dtype: torch.dtype) -> Tensor:
    """For each entry, the most that rounding to nearest in `dtype` can have moved it; float64."""
    return (values.double().abs() * UNIT[dtype]).clamp_min(TINY[dtype])


def check_fits(weights: Mapping[str, LoraWeights], shapes: Mapping[str, Sequence[int]], file: str) -> list[UserError]:
    """A fault for each module that the base lacks or that has another shape there; at most five."""
    faults = []
    for name, w in weights.items():
        shape = shapes.get(name)
        if shape is None:
            faults.append(UserError(f"{name}: the base model has no such layer", file=file))
        elif w.up.shape[0] != shape[0] or w.down[0].numel() != math.prod(shape[1:]):
            text = f"{name}: A {list(w.down.shape)}, B {list(w.up.shape)} for a weight {list(shape)}"
            faults.append(UserError(text, file=file, hint="this LoRA is for another base model"))
        elif w.dora is not None:
            try:
                bake.axis_of(w.dora, shape)
            except UserError as fault:
                faults.append(UserError(f"{name}: {fault.message}", file=file, hint=fault.hint))
    return faults[:5]


def changed(
    tensor: Tensor,
    changes: Sequence[tuple[slice, Sequence[tuple[LoraWeights, float]]]],
    dtype: torch.dtype,
    rounding: Rounding,
) -> Tensor:
    """`tensor` + Σ strength · ΔW on the named rows, in float64, rounded once to `dtype`; ΔW is (alpha / rank) · up @
    down, or what a DoRA makes of these rows.

    A few rows at a time, so that it stays in the processor's cache. OverflowError if `dtype` cannot hold the sum.
    """
    if not (tensor.dim() and tensor.numel()):
        return tensor.to(dtype)
    parts: list[tuple[slice, Factors | Tensor]] = []
    for rows, loras in changes:
        plain = [factors.of(w, strength) for w, strength in loras if w.dora is None]
        parts += [(rows, factors.stack(plain))] if plain else []
        # The lengths of columns are those of all rows, so a DoRA's change is worked out whole.
        parts += [(rows, s * bake.change(w, tensor[rows]).flatten(1)) for w, s in loras if w.dora is not None]
    result = torch.empty(tensor.shape, dtype=dtype)
    few = max(1, _ENTRIES // tensor[0].numel())
    for start in range(0, len(tensor), few):
        before = tensor[start : start + few]
        exact, energy = before.double(), 0.0
        for rows, f in parts:
            low, high = max(start, rows.start), min(start + len(before), rows.stop)
            if low < high:
                own = slice(low - rows.start, high - rows.start)
                delta = f[own] if isinstance(f, Tensor) else f.up[own] @ f.down
                exact[low - start : high - start] += delta.view(high - low, *tensor.shape[1:])
                energy += (delta**2).sum().item()
        rounded = result[start : start + few].copy_(exact)
        largest = exact.abs().max().item()
        if math.isfinite(largest) and not math.isfinite(rounded.double().abs().max().item()):
            raise OverflowError(f"a value of {largest:.3g} does not fit {str(dtype).removeprefix('torch.')}")
        if parts:
            rounding.add(exact, rounded, before, energy)
    return result
