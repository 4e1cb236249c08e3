"""The bytes of a safetensors file: a header of JSON, and the tensors' values behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lora_scripts.dtypes import in_files

if TYPE_CHECKING:
    from torch import Tensor

Buffer: TypeAlias = bytes | bytearray | memoryview


class Row(NamedTuple):
    """What a safetensors header says of one tensor."""

    name: str
    dtype: str
    """The format's name: F32, F16, BF16, …"""
    shape: tuple[int, ...]
    size: int
    """In bytes."""


def safetensors_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, Iterator[Buffer]]:
    """The bytes of a safetensors file: its header (with the 8 bytes of its length), and one buffer for each tensor.

    Equal input gives equal bytes, which the safetensors library does not promise: it writes metadata in random order.
    Tensors of wider types come first, then by name, as the library does, so each starts where its type wants it.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    rows = []
    for name in order:
        tensor = tensors[name]
        rows.append(Row(name, in_files(tensor.dtype), tuple(tensor.shape), tensor.numel() * tensor.element_size()))
    return safetensors_header(rows, metadata), (tensor_bytes(tensors[name]) for name in order)


def safetensors_header(rows: Iterable[Row], metadata: Mapping[str, str] | None = None) -> bytes:
    """The header (with the 8 bytes of its length) of a file whose tensors follow one another as the rows do.

    `write_atomic(path, chain([header], buffers))` then writes a file of any size, one tensor in memory at a time.
    """
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    start = 0
    for row in rows:
        end = start + row.size
        header[row.name] = {"dtype": row.dtype, "shape": list(row.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values, row by row, little-endian as on every machine that torch runs on."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
