"""Which device, and which precision."""

from __future__ import annotations

import torch

from lora_scripts.adapters.products import cpu_has_matrix_units
from lora_scripts.compute.pages import keep_freed
from lora_scripts.dtypes import WORDS, in_torch
from lora_scripts.errors import UserError

DTYPES = {word: in_torch(WORDS[word]) for word in ("fp32", "bf16", "fp16")}
"""What a model can be computed in."""


def choose_device(wanted: str) -> torch.device:
    """`auto`: a CUDA card, else Apple's, else the CPU, for which memory that is freed is kept from here on. UserError
    for one that is not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    device = torch.device(wanted if wanted != "auto" else "cuda" if cuda else "mps" if mps else "cpu")
    if device.type == "cpu":
        keep_freed()
    there = {"cuda": cuda, "mps": mps}.get(device.type, True)
    if not there or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device {wanted}: there is none on this machine", hint="use device: auto, or cpu")
    return device


def numbered(device: torch.device) -> torch.device:
    """A CUDA card with its number, which some of torch's functions ask for; others as they are."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def choose_precision(wanted: str, device: torch.device) -> str:
    """`auto`: bf16 where the processor computes in it, fp16 (with scaled gradients) on older CUDA cards, else fp32."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 is for graphics cards", hint="use precision: auto (bf16 or fp32 on a CPU)")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bf16 (AVX512-BF16 or AMX); elsewhere it is emulated, and slower than float32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()) or cpu_has_matrix_units()
