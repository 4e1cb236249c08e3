"""What a GGUF file holds, told from its header alone: llama.cpp's format, in which image models, too, are passed on.

Layout: gguf.md of ggml-org's ggml, versions 2 and 3, little-endian. A matrix lies row by row in blocks of 32 or 256
numbers, each block with scales of its own. Axes stand there from the last to the first, and those of 1 that come first
are left out by some programs; ComfyUI-GGUF notes what a tensor was before it was reshaped to fit the blocks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from lora_scripts.errors import UserError
from lora_scripts.formats import header
from lora_scripts.formats.header import DOWNLOAD, Header, TensorInfo


class Block(NamedTuple):
    """How numbers of a type lie."""

    name: str
    weights: int
    """Numbers in a block."""
    size: int
    """Its bytes."""
    scales: tuple[int, ...] = ()
    """Where in it its 16-bit floats stand, in bytes; of the types that can be made whole."""


# By the number that stands for the type (ggml.h). What has no scales here, and is no float, is known by name only.
_TYPES = {
    0: Block("F32", 1, 4),
    1: Block("F16", 1, 2),
    2: Block("Q4_0", 32, 18, (0,)),
    3: Block("Q4_1", 32, 20, (0, 2)),
    6: Block("Q5_0", 32, 22, (0,)),
    7: Block("Q5_1", 32, 24, (0, 2)),
    8: Block("Q8_0", 32, 34, (0,)),
    9: Block("Q8_1", 32, 40),
    10: Block("Q2_K", 256, 84, (80, 82)),
    11: Block("Q3_K", 256, 110, (108,)),
    12: Block("Q4_K", 256, 144, (0, 2)),
    13: Block("Q5_K", 256, 176, (0, 2)),
    14: Block("Q6_K", 256, 210, (208,)),
    15: Block("Q8_K", 256, 292),
    16: Block("IQ2_XXS", 256, 66),
    17: Block("IQ2_XS", 256, 74),
    18: Block("IQ3_XXS", 256, 98),
    19: Block("IQ1_S", 256, 50),
    20: Block("IQ4_NL", 32, 18, (0,)),
    21: Block("IQ3_S", 256, 110),
    22: Block("IQ2_S", 256, 82),
    23: Block("IQ4_XS", 256, 136, (0,)),
    24: Block("I8", 1, 1),
    25: Block("I16", 1, 2),
    26: Block("I32", 1, 4),
    27: Block("I64", 1, 8),
    28: Block("F64", 1, 8),
    29: Block("IQ1_M", 256, 56),
    30: Block("BF16", 1, 2),
    34: Block("TQ1_0", 256, 54),
    35: Block("TQ2_0", 256, 66),
}
PACKED: Mapping[str, Block] = {block.name: block for block in _TYPES.values() if block.scales}
"""The types whose blocks can be made whole."""
_VERSIONS = (2, 3)
_ALIGNMENT, _MOST = 32, 1_000_000
_SHORT = 8
"""Of a list of values: longer ones are passed over; and more axes than any tensor has."""
_SHAPE = "comfy.gguf.orig_shape."
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9


def is_gguf(path: Path) -> bool:
    """By the file's first bytes. UserError where there is no such file."""
    return header.sniff(path) is header.GGUF


def read_model(path: Path) -> Header:
    """The header of a safetensors or a GGUF file. UserErrors as of `header.read_header`."""
    return read_gguf(path) if is_gguf(path) else header.read_header(path)


def packed_types(path: Path) -> list[str]:
    """The types of a model file's matrices that are made whole only when they are used, the most frequent first."""
    if not path.is_file() or not is_gguf(path):
        return []
    found = [info.dtype for info in read_gguf(path).tensors.values() if info.dtype in PACKED]
    return sorted(set(found), key=lambda name: (-found.count(name), name))


def read_gguf(path: Path) -> Header:
    """The header of a GGUF file: shapes with the first axis first, types as llama.cpp calls them, and the values of its
    metadata that are no lists, as texts. The tensors are not touched.

    UserError, in one line, for another version and for a file that is truncated or damaged.
    """
    with header.opened(path), path.open("rb") as file:
        total = path.stat().st_size
        read = _Reader(file, total, path)
        read.exactly(4)
        if (version := read.number("I")) not in _VERSIONS:
            text = f"this is a GGUF file of version {version}, and those of versions 2 and 3 are read"
            raise UserError(text, file=path, hint="get a newer one, or the .safetensors version")
        count, pairs = read.number("Q"), read.number("Q")
        if max(count, pairs) > _MOST:
            read.damaged("more tensors than a model has")
        values = dict(read.pair() for _ in range(pairs))
        rows = [read.row() for _ in range(count)]
        end = file.tell()
    alignment = values.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        read.damaged("its alignment")
    body = -(-end // alignment) * alignment
    tensors = _tensors(rows, values, read.damaged)
    last = max((info.span[1] for info in tensors.values()), default=0)
    if last and body + last > total:
        header.truncated(path, total, body + last)
    if total > max(body, end) + -(-last // alignment) * alignment:
        read.damaged(f"{total - body - last} bytes too many at the end")
    metadata = {key: str(value) for key, value in values.items() if not isinstance(value, list)}
    return Header(tensors, metadata, min(body, total))


def _tensors(
    rows: list[tuple[str, tuple[int, ...], int, int]], values: Mapping[str, object], damaged: Callable[[str], NoReturn]
) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for name, axes, number, start in rows:
        shape, block, called = axes[::-1], _TYPES.get(number), ascii(name)[:120]
        if name in found:
            damaged(f"{called} stands twice")
        if block is None:
            damaged(f"{called} is of type {number}, which is not known here")
        if start % 8:
            damaged(f"the place of {called}")
        if (shape[-1] if shape else 1) % block.weights:
            damaged(f"a row of {called} is no whole number of blocks")
        size = math.prod(shape) // block.weights * block.size
        before = values.get(_SHAPE + name)
        if isinstance(before, list):
            if not all(isinstance(n, int) for n in before) or math.prod(before) != math.prod(shape):
                damaged(f"the shape that {called} had")
            shape = tuple(before)
        found[name] = TensorInfo(block.name, shape, (start, start + size))
    spans = sorted((info.span, name) for name, info in found.items())
    for (one, _), (other, name) in pairwise(spans):
        if other[0] < one[1]:
            damaged(f"{ascii(name)[:120]} begins inside of its neighbour")
    return found


class _Reader:
    """A header from its begin to its end; never beyond the file's."""

    def __init__(self, file: BinaryIO, total: int, path: Path) -> None:
        self._file, self._total, self._path = file, total, path

    def damaged(self, what: str) -> NoReturn:
        raise UserError(f"damaged GGUF header ({what})", file=self._path, hint=DOWNLOAD)

    def exactly(self, size: int) -> bytes:
        if size > self._total - self._file.tell():
            header.truncated(self._path, self._total, self._file.tell() + size)
        return self._file.read(size)

    def number(self, kind: str) -> int:
        found: int = struct.unpack(f"<{kind}", self.exactly(struct.calcsize(f"<{kind}")))[0]
        return found

    def string(self) -> str:
        try:
            return self.exactly(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            self.damaged("not readable")

    def pair(self) -> tuple[str, object]:
        return self.string(), self.value(self.number("I"))

    def value(self, kind: int) -> object:
        """Of a long list (a tokenizer's words) nothing is kept."""
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _LIST:
            self.damaged(f"a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS and count > _SHORT:
            self.exactly(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
            return []
        if inner == _LIST or count > self._total:
            self.damaged("a list of lists")
        found = [self.value(inner) for _ in range(count)]
        return found if count <= _SHORT else []

    def row(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, axes from the last to the first, type, where it begins)"""
        name, axes = self.string(), self.number("I")
        if axes > _SHORT:
            self.damaged(f"{axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))
        return name, shape, self.number("I"), self.number("Q")
