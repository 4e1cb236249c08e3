"""Types of numbers, as safetensors files, torch and people call them. Torch is not needed to know their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORDS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8": "F8_E4M3"}
"""What people write -> what files call it. fp8 is e4m3: 3 bits of fraction, from 0.002 to 448."""
_TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_FILE = {torch: file for file, torch in _TORCH.items()}
FLOATS = tuple(file for file, torch in _TORCH.items() if "float" in torch)
"""The types that hold weights, as files call them."""


def in_torch(name: str) -> torch.dtype:
    """Of what files call it."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH[name])
    return dtype


def in_files(dtype: torch.dtype) -> str:
    """What files call it. KeyError for a type that none holds."""
    return _FILE[str(dtype).removeprefix("torch.")]
