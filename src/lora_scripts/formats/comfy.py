"""What ComfyUI writes beside a weight that it has rounded: `<layer>.comfy_quant`, some JSON as bytes.

Read here for int8: {"format": "int8_tensorwise"}, a weight of int8 codes with one scale or one for each row, and with
"convrot": true and "convrot_groupsize": g each g inputs of the layer turned together before they were rounded, so that
no single one is far larger than the others (ConvRot; comfy-kitchen 0.2.40, tensor/int8.py and int8_utils.py).
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BESIDE = ".comfy_quant"
INT8 = "int8_tensorwise"
GROUPS = (4, 16, 64, 256, 1024)
_SEED = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))


def turned_together(told: bytes) -> int:
    """How many inputs of an int8 weight were turned together; 0: none. ValueError for what is not read here."""
    try:
        words = json.loads(told)
        form, size = words["format"], words.get("convrot_groupsize", 256) if words.get("convrot") else 0
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("a format that is not told") from None
    if form != INT8:
        raise ValueError(f"the format {str(form)[:40]}")
    if size not in (0, *GROUPS):
        raise ValueError(f"turned in groups of {str(size)[:20]}, no power of 4")
    return size


def turn_back(weight: Tensor, size: int) -> Tensor:
    """The weight [out, in] whose inputs were turned in groups of `size`, float32."""
    return (weight.view(len(weight), -1, size) @ _turn(size).to(weight)).view(weight.shape)


@cache
def _turn(size: int) -> Tensor:
    """[size, size], orthogonal and its own inverse: Kronecker's powers of the seed, over the root of the size."""
    import torch

    seed = torch.tensor(_SEED, dtype=torch.float64)
    turn = seed
    while len(turn) < size:
        turn = torch.kron(turn, seed)
    return (turn / size**0.5).float()
