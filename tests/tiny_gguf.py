"""Models in GGUF files, as the package gguf writes and quantises them, by the rules of ComfyUI-GGUF's converter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

gguf = pytest.importorskip("gguf", reason="pip install gguf")
Kinds = Callable[[str, Tensor], str]
"""(key, tensor) -> the type that it is stored as."""
BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""What the package itself can quantise to."""
LONG = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
"""What only llama.cpp can: 256 numbers a block."""


def mixed(key: str, tensor: Tensor) -> str:
    """Matrices in blocks of every kind in turn, and one in half precision; everything else in float32."""
    if tensor.ndim != 2 or tensor.shape[0] == 1 or tensor.shape[1] % 32:
        return "F32"
    if key.endswith(("img_in.weight", "time_in.in_layer.weight")):
        return "BF16"
    kinds = (*BLOCKS, *(LONG if tensor.shape[1] % 256 == 0 else ()))
    return kinds[sum(map(ord, key)) % len(kinds)]


def all_as(kind: str) -> Kinds:
    return lambda key, tensor: kind if mixed(key, tensor) in (*BLOCKS, *LONG) else "F32"


def write(
    path: Path, tensors: Mapping[str, Tensor], kinds: Kinds = mixed, arch: str | None = "flux", **values: Any
) -> dict[str, Tensor]:
    """What the file's tensors stand for, by the package's own `dequantize`."""
    writer = gguf.GGUFWriter(path, arch or "none")
    if arch is None:  # as stable-diffusion.cpp writes them
        writer.kv_data[0].pop("general.architecture")
    for key, value in {"modelspec.resolution": "64x64", **values}.items():
        {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array, str: writer.add_string}[
            type(value)
        ](key, value)
    whole = {}
    for key, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[kinds(key, tensor)]
        numbers = tensor.float().numpy()
        data = random_blocks(numbers.shape, kind.name) if kind.name in LONG else gguf.quants.quantize(numbers, kind)
        writer.add_tensor(key, data, raw_dtype=kind)
        whole[key] = torch.from_numpy(gguf.quants.dequantize(data, kind).reshape(numbers.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return whole


def of(base: Path, kinds: Kinds = mixed, **more: Any) -> Path:
    """A base's file once more, beside it."""
    path = base.with_suffix(".gguf")
    write(path, load_file(base), kinds, **more)
    return path


def random_blocks(shape: tuple[int, ...], kind: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """Bytes [rows, …] of any pattern, with scales that give numbers of the size of weights."""
    from lora_scripts.formats.gguf import PACKED

    block, generator = PACKED[kind], np.random.default_rng(seed)
    count = shape[-1] // block.weights
    blocks = generator.integers(0, 256, (*shape[:-1], count, block.size), dtype=np.uint8)
    for at in block.scales:
        scales = generator.uniform(-2e-3, 2e-3, (*shape[:-1], count, 1)).astype(np.float16)
        blocks[..., at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(*shape[:-1], count * block.size)


def llama_names(arch: str, tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A text encoder's tensors under the names that the package's own table has for them."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], layers)
    named = {table.get_name(key, try_suffixes=(".weight", ".bias")): tensor for key, tensor in tensors.items()}
    assert None not in named and len(named) == len(tensors)
    return named
