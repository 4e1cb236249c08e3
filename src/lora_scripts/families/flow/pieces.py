"""Weights of one part of a model, in one file or in several pieces, as one table of tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families.sd.rows import Row, as_model
from lora_scripts.formats.gguf import PACKED, is_gguf, read_gguf
from lora_scripts.formats.header import Header, read_header

if TYPE_CHECKING:
    from torch import Tensor


class Pieces:
    """What `sd.rows.Handle` asks for, over several files; tensors stay memory-mapped."""

    def __init__(self, files: Sequence[Path], dropped: Sequence[str] = (), *, gguf: bool = False) -> None:
        """`dropped`: what keys may begin with in the files, and do not here; the first that fits. `gguf`: whether they
        may be GGUF files, too."""
        self._packed = {file for file in files if gguf and is_gguf(file)}
        self.headers: Mapping[Path, Header] = {f: (read_gguf if f in self._packed else read_header)(f) for f in files}
        self._widened: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        self._open: dict[Path, Any] = {}
        for file, header in self.headers.items():
            for key in header.tensors:
                prefix = next((start for start in dropped if key.startswith(start)), "")
                self._places[key.removeprefix(prefix)] = (file, key)

    def keys(self) -> Collection[str]:
        return self._places.keys()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor."""
        told = {key: self.headers[file].tensors[own].shape for key, (file, own) in self._places.items()}
        return {**told, **self._widened}

    def widen(self, rows: Iterable[Row]) -> None:
        """Gives the tensors of GGUF files the axes of 1 that some programs leave out: [3840] becomes [1, 3840]."""
        shapes = self.shapes
        for row in rows:
            first, rest = row.file_shape[:1], row.file_shape[1:]
            if first == (1,) and shapes.get(row.ldm) == rest and self._places[row.ldm][0] in self._packed:
                self._widened[row.ldm] = row.file_shape

    def packed(self, rows: Iterable[Row]) -> dict[str, str]:
        """The rows' matrices that lie in blocks, as a layer can keep them: key in the model -> type of the blocks."""
        found = {}
        for row in rows:
            file, own = self._places[row.ldm]
            info = self.headers[file].tensors[own]
            whole = len(info.shape) == 2 and not (row.transposed or row.flat)
            if info.dtype in PACKED and whole and info.shape[1] % PACKED[info.dtype].weights == 0:
                found[row.hf] = info.dtype
        return found

    def codes(self, row: Row) -> Tensor:
        """[rows, bytes] of a matrix that `packed` names."""
        file, own = self._places[row.ldm]
        return as_model(self._handle(file).codes(own), row)

    def is_packed(self, file: Path) -> bool:
        """Whether it is a GGUF file."""
        return file in self._packed

    def key_in_file(self, key: str) -> str:
        """As it stands in its file."""
        return self._places[key][1]

    def get_tensor(self, name: str) -> Tensor:
        file, key = self._places[name]
        tensor: Tensor = self._handle(file).get_tensor(key)
        return tensor.view(self._widened[name]) if name in self._widened else tensor

    def get_slice(self, name: str) -> Any:
        file, key = self._places[name]
        return self._handle(file).get_slice(key)

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = self._opened(file)
        return self._open[file]

    def _opened(self, file: Path) -> Any:
        if file in self._packed:
            from lora_scripts.compute.packed import PackedFile

            return PackedFile(file, self.headers[file])
        from safetensors import safe_open

        return safe_open(file, "pt")


def require_floats(pieces: Pieces, read: Collection[str]) -> None:
    """UserError where a tensor that is read is no floating-point number; `read` by its key."""
    from lora_scripts.families.sd.check import FLOATS

    for file, header in pieces.headers.items():
        known = (*FLOATS, *PACKED) if pieces.is_packed(file) else FLOATS
        odd = [(k, t.dtype) for k, t in header.tensors.items() if t.dtype not in known and k in read]
        if odd and pieces.is_packed(file):
            text = f"{len(odd)} tensors are of types that are not read here, first {odd[0][0]} ({odd[0][1]})"
            raise UserError(text, file=file, hint="give a Q8_0, Q6_K, Q5_K, Q4_K or BF16 version")
        if odd:
            text = f"{len(odd)} tensors are not floating point, first {odd[0][0]} ({odd[0][1]})"
            raise UserError(text, file=file, hint="this is a quantised file; give the bf16, fp16, fp32 or fp8 version")


def as_built(rows: Sequence[Row]) -> list[Row]:
    """The same rows for files whose keys are already the model's, as in a diffusers folder."""
    return [Row(row.hf, row.hf, row.model_shape) for row in rows]
