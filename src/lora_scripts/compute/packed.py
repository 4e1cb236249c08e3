"""Weights as a GGUF file has them, in blocks of 32 or 256 numbers with scales of their own: made whole for each
product, forward and backward, and else left as they lie in the file.

What a block stands for is computed by diffusers' functions (`diffusers.quantizers.gguf.utils`), but in float32, and
rounded once: then it is what the package gguf itself gives. In half precision, as diffusers asks them, digits are lost.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lora_scripts.compute.quantised import StoredLayer
from lora_scripts.dtypes import in_torch
from lora_scripts.formats.gguf import PACKED
from lora_scripts.formats.header import Header

_PIECE = {"cpu": 1 << 19}
_LARGE_PIECE = 1 << 24
"""Numbers that are made at a time, in float32 with some copies on the way: on a CPU few enough for its cache, elsewhere
so many that a card is not kept waiting (64 MiB for each copy)."""


def make_whole(codes: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """The numbers [rows, columns] that bytes [rows, blocks side by side] stand for, rounded once to `dtype`."""
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGMLQuantizationType

    block, function = PACKED[kind], dequantize_functions[GGMLQuantizationType[kind]]
    rows, columns = codes.shape[0], codes.shape[1] // block.size * block.weights
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    step = max(1, _PIECE.get(codes.device.type, _LARGE_PIECE) // columns)
    for start in range(0, rows, step):
        some = codes[start : start + step].reshape(-1, block.size)
        out[start : start + step] = function(some, block.weights, block.size, torch.float32).view(-1, columns)
    return out


class PackedLinear(StoredLayer, nn.Linear):  # type: ignore[override]  # its weight cannot be set
    """An `nn.Linear` with a weight in blocks; made by `pack_layer`."""

    kind: str
    """Of its blocks, as llama.cpp calls it."""

    def whole(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return make_whole(codes, self.kind, dtype)


def pack_layer(layer: nn.Linear, codes: Tensor, kind: str, dtype: torch.dtype) -> None:
    """Puts blocks [rows, bytes] in the place of the weight, for good; whoever holds the layer need not know.

    `dtype`: that the model computes in.
    """
    shape = torch.Size((layer.out_features, layer.in_features))
    assert codes.shape[0] == shape[0] and codes.shape[1] // PACKED[kind].size * PACKED[kind].weights == shape[1]
    del layer.weight
    layer.__class__ = PackedLinear  # as `quantise_layer` does
    layer.register_buffer("codes", codes)
    layer.kind, layer.shape, layer.dtype = kind, shape, dtype  # type: ignore[assignment]


class PackedFile:
    """The tensors of a GGUF file, mapped and not copied."""

    def __init__(self, path: Path, header: Header) -> None:
        self._tensors, self._body = header.tensors, header.body
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def get_tensor(self, name: str) -> Tensor:
        """In the file's own type; one in blocks is made whole in float32."""
        info = self._tensors[name]
        if info.dtype in PACKED:
            return make_whole(self._of(name)[None], info.dtype, torch.float32).view(info.shape)
        return self._of(name).view(in_torch(info.dtype)).view(info.shape)

    def codes(self, name: str) -> Tensor:
        """[rows, bytes] of a matrix in blocks, each row a whole number of them."""
        return self._of(name).view(self._tensors[name].shape[0], -1)

    def _of(self, name: str) -> Tensor:
        start, stop = self._tensors[name].span
        return self._bytes[self._body + start : self._body + stop]
