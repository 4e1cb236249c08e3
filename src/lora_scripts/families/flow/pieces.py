"""Weights of one part of a model, in one `.safetensors` file or in several pieces, as one table of tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families.sd.rows import Row
from lora_scripts.formats.header import Header, read_header

if TYPE_CHECKING:
    from torch import Tensor


class Pieces:
    """What `sd.rows.Handle` asks for, over several files; tensors stay memory-mapped."""

    def __init__(self, files: Sequence[Path], dropped: Sequence[str] = ()) -> None:
        """`dropped`: what keys may begin with in the files, and do not here; the first that fits."""
        self.headers: Mapping[Path, Header] = {file: read_header(file) for file in files}
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
        return {key: self.headers[file].tensors[own].shape for key, (file, own) in self._places.items()}

    def key_in_file(self, key: str) -> str:
        """As it stands in its file."""
        return self._places[key][1]

    def get_tensor(self, name: str) -> Tensor:
        file, key = self._places[name]
        tensor: Tensor = self._handle(file).get_tensor(key)
        return tensor

    def get_slice(self, name: str) -> Any:
        file, key = self._places[name]
        return self._handle(file).get_slice(key)

    def _handle(self, file: Path) -> Any:
        from safetensors import safe_open

        if file not in self._open:
            self._open[file] = safe_open(file, "pt")
        return self._open[file]


def require_floats(pieces: Pieces, read: Collection[str]) -> None:
    """UserError where a tensor that is read is no floating-point number; `read` by its key."""
    from lora_scripts.families.sd.check import FLOATS

    for file, header in pieces.headers.items():
        odd = [(k, t.dtype) for k, t in header.tensors.items() if t.dtype not in FLOATS and k in read]
        if odd:
            text = f"{len(odd)} tensors are not floating point, first {odd[0][0]} ({odd[0][1]})"
            raise UserError(text, file=file, hint="this is a quantised file; give the bf16, fp16, fp32 or fp8 version")


def as_built(rows: Sequence[Row]) -> list[Row]:
    """The same rows for files whose keys are already the model's, as in a diffusers folder."""
    return [Row(row.hf, row.hf, row.model_shape) for row in rows]
