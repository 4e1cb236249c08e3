"""Checkpoints one tensor at a time: found, read and rewritten, so that a file may be larger than the memory.

Plain reads, not a mapped file: mapped pages count as this process's memory wherever that is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lora_scripts.dtypes import in_torch
from lora_scripts.errors import UserError
from lora_scripts.formats import io
from lora_scripts.formats.header import Header, TensorInfo
from lora_scripts.formats.numbers import finite, not_finite
from lora_scripts.workshop.checkpoint import Checkpoint

CHUNK = 1 << 24
"""Bytes that are copied at a time."""


@dataclass(frozen=True)
class Rewrite:
    """How one file becomes another: which tensors change, and what type they are kept in."""

    header: Header
    changed: Mapping[str, str]
    """Tensor -> its type in the new file, of each that goes through `change`."""
    change: Callable[[str, Tensor], Tensor]
    """(name, tensor as in the file) -> the same tensor of the new type."""
    metadata: Mapping[str, str]
    unread: Callable[[str], bool] = lambda name: False
    """Tensors that nobody reads, and that may be anything."""

    @property
    def rows(self) -> list[io.Row]:
        """In the file's own order; where a type changes, wider ones first, so that each starts where its type wants."""
        order = sorted(self.header.tensors, key=lambda name: self.header.tensors[name].span)
        rows = [self._row(name, self.header.tensors[name]) for name in order]
        if any(row.dtype != self.header.tensors[row.name].dtype for row in rows):
            rows.sort(key=lambda row: -(row.size // max(1, torch.Size(row.shape).numel())))
        return rows

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(row.size for row in self.rows)

    def _row(self, name: str, info: TensorInfo) -> io.Row:
        dtype = self.changed.get(name, info.dtype)
        size = info.span[1] - info.span[0]
        if dtype != info.dtype:
            size = torch.Size(info.shape).numel() * in_torch(dtype).itemsize
        return io.Row(name, dtype, info.shape, size)

    def data(self, path: Path) -> Iterator[io.Buffer]:
        """The new file's bytes: header, then tensor by tensor from `path`, which the header is of. UserError at the
        first tensor with numbers that are not finite."""
        rows = self.rows
        yield io.safetensors_header(rows, self.metadata)
        with opened(path) as file:
            for row in rows:
                if row.name in self.changed:
                    tensor = read_tensor(file, self.header, row.name)
                    self._require_finite(path, row.name, io.tensor_bytes(tensor))
                    yield io.tensor_bytes(self.change(row.name, tensor))
                else:
                    info = self.header.tensors[row.name]
                    for piece in copied(file, self.header.body + info.span[0], row.size):
                        self._require_finite(path, row.name, piece)
                        yield piece

    def _require_finite(self, path: Path, name: str, piece: io.Buffer) -> None:
        if not (finite(piece, self.header.tensors[name].dtype) or self.unread(name)):
            raise not_finite(path, [name])


def opened(path: Path) -> BinaryIO:
    """The file for reading, without a buffer. UserError when the system refuses."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        hint = "check its permissions"
        raise UserError(f"cannot be read: {error.strerror or error}", file=path, hint=hint) from error


def read_tensor(file: BinaryIO, header: Header, name: str) -> Tensor:
    """One tensor, in the file's own type."""
    info = header.tensors[name]
    buffer = bytearray(info.span[1] - info.span[0])
    file.seek(header.body + info.span[0])
    view, at = memoryview(buffer), 0
    while at < len(buffer):
        count = file.readinto(view[at : at + CHUNK])  # type: ignore[attr-defined]  # a raw file has it
        if not count:
            raise UserError("the file became shorter while it was read", file=file.name, hint="run it again")
        at += count
    if not buffer:
        return torch.empty(info.shape, dtype=in_torch(info.dtype))
    return torch.frombuffer(buffer, dtype=in_torch(info.dtype)).reshape(info.shape)


def read_module(model: Checkpoint, module: str) -> Tensor:
    """One layer's weight, [out, in, …], in the file's own type."""
    place = model.places[module][0]
    with opened(model.file(place.file)) as file:
        tensor = read_tensor(file, model.files[place.file], place.key)
    if place.swapped:
        return torch.cat(tensor.chunk(2)[::-1])
    return tensor.T if place.flipped else tensor[place.rows(len(tensor))]


def copied(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """`size` bytes from `start`, in pieces."""
    file.seek(start)
    while size > 0:
        piece = file.read(min(CHUNK, size))
        if not piece:
            raise UserError("the file became shorter while it was read", file=file.name, hint="run it again")
        size -= len(piece)
        yield piece


def whole(path: Path) -> Iterable[bytes]:
    """A file's bytes in pieces, opened when the first one is asked for."""
    with opened(path) as file:
        while piece := file.read(CHUNK):
            yield piece
