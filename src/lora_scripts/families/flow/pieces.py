"""Weights of one part of a model, in one file or in several pieces, as one table of tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.dtypes import FLOATS
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.sd.rows import Row, as_model, scale_key
from lora_scripts.formats.comfy import BESIDE, turned_together
from lora_scripts.formats.gguf import PACKED, is_gguf, read_gguf
from lora_scripts.formats.header import Header, read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Pieces:
    """What `sd.rows.Handle` asks for, over several files; tensors stay memory-mapped."""

    def __init__(
        self,
        files: Sequence[Path],
        dropped: Sequence[str] = (),
        *,
        gguf: Callable[[str], str] | None = None,
        inside: str = "",
    ) -> None:
        """`dropped`: what keys may begin with in the files, and do not here; the first that fits. `gguf`: what keys of
        GGUF files are called here; without it these are refused. `inside`: what keys begin with in a file of several
        models; those of the others are left out."""
        self._packed = {file for file in files if gguf is not None and is_gguf(file)}
        self.headers: Mapping[Path, Header] = {f: (read_gguf if f in self._packed else read_header)(f) for f in files}
        self._widened: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        self._open: dict[Path, Any] = {}
        for file, header in self.headers.items():
            for key in header.tensors:
                if not key.startswith(inside):
                    continue
                name = key.removeprefix(inside)
                prefix = next((start for start in dropped if name.startswith(start)), "")
                name = name.removeprefix(prefix)
                self._places[gguf(name) if gguf is not None and file in self._packed else name] = (file, key)

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

    def block(self, row: Row) -> str:
        """The type of the blocks that a matrix lies in, if each of its rows is a whole number of them; else ""."""
        file, own = self._places[row.ldm]
        info = self.headers[file].tensors[own]
        whole = len(info.shape) == 2 and info.dtype in PACKED and not (row.transposed or row.flat)
        return info.dtype if whole and info.shape[1] % PACKED[info.dtype].weights == 0 else ""

    def codes(self, row: Row) -> Tensor:
        """[rows, bytes] of a matrix that lies in blocks."""
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

    def read(self, file: Path, key: str) -> Tensor:
        """A tensor by its key in a file."""
        tensor: Tensor = self._handle(file).get_tensor(key)
        return tensor

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
    for file, header in pieces.headers.items():
        known = (*FLOATS, *PACKED) if pieces.is_packed(file) else FLOATS
        codes = [k for k, t in header.tensors.items() if t.dtype == "I8" and k in read and scale_key(k, header.tensors)]
        raise_all(_faults_of_codes(pieces, file, codes)[:10])
        odd = [(k, t.dtype) for k, t in header.tensors.items() if t.dtype not in known and k in {*read} - {*codes}]
        if odd and pieces.is_packed(file):
            text = f"{len(odd)} tensors are of types that are not read here, first {odd[0][0]} ({odd[0][1]})"
            raise UserError(text, file=file, hint="give a Q8_0, Q6_K, Q5_K, Q4_K or BF16 version")
        if odd:
            text = f"{len(odd)} tensors are not floating point, first {odd[0][0]} ({odd[0][1]})"
            hint = "this is a quantised file; give the bf16, fp16, fp32, fp8 or int8 version"
            raise UserError(text, file=file, hint=hint)


def _faults_of_codes(pieces: Pieces, file: Path, weights: Sequence[str]) -> list[UserError]:
    """What is wrong with weights of int8 codes and their scales, by their keys in the file."""
    faults, shown = [], pieces.headers[file].tensors
    for key in weights:
        beside, shape = key.removesuffix(".weight") + BESIDE, shown[key].shape
        try:
            size = turned_together(pieces.read(file, beside).numpy().tobytes()) if beside in shown else 0
            if len(shape) != 2:
                raise ValueError(f"a weight of shape {list(shape)}")
            if size and shape[1] % size:
                raise ValueError(f"{shape[1]} inputs turned in groups of {size}")
        except ValueError as error:
            text = f"{key} is kept in a way that is not read here: {error}"
            faults.append(UserError(text, file=file, hint="give the bf16, fp16 or fp8 version"))
    return faults


def require_package(pieces: Pieces) -> None:
    """UserError where blocks cannot be made whole, for the package that does it is missing."""
    for file, header in pieces.headers.items():
        if any(info.dtype in PACKED for info in header.tensors.values()) and find_spec("gguf") is None:
            raise UserError("a GGUF file needs the package gguf", file=file, hint="install it: pip install gguf")


def take_blocks(
    model: nn.Module, pieces: Pieces, table: Iterable[Row], dtype_of: Callable[[str], torch.dtype]
) -> tuple[dict[str, Tensor], list[Row]]:
    """What a GGUF file has in blocks, for a model's state dict, and the rows that are left.

    Linear layers become such as keep blocks, mapped from the file; of others (a table of tokens) the whole is made.
    `dtype_of`: the key of a weight -> the type that the model computes in.
    """
    from torch import nn

    from lora_scripts.compute.packed import make_whole, pack_layer

    state: dict[str, Tensor] = {}
    left: list[Row] = []
    for row in table:
        layer, _, leaf = row.hf.rpartition(".")
        kind = pieces.block(row) if leaf == "weight" else ""
        if not kind:
            left.append(row)
            continue
        owner, codes = model.get_submodule(layer), pieces.codes(row)
        if isinstance(owner, nn.Linear):
            pack_layer(owner, codes, kind, dtype_of(row.hf))
            state[f"{layer}.codes"] = codes
        else:
            state[row.hf] = make_whole(codes, kind, dtype_of(row.hf))
    return state, left


def lend_scaled(
    model: nn.Module, pieces: Pieces, table: Iterable[Row], dtype: torch.dtype
) -> tuple[dict[str, Tensor], list[Row]]:
    """What a file has in float8 with a scale beside it, for a model's state dict, and the rows that are left.

    Linear layers keep it so, mapped from the file, until they are restored. `dtype`: that the model computes in.
    """
    from torch import nn

    from lora_scripts.compute.quantised import lend

    keys, state, left = pieces.keys(), dict[str, Any](), list[Row]()
    for row in table:
        layer, _, leaf = row.hf.rpartition(".")
        key = scale_key(row.ldm, keys) if leaf == "weight" and len(row.shape) == 2 else None
        turned = row.transposed or row.flat or row.swapped or row.heads
        owner = None if key is None or turned else model.get_submodule(layer)
        weight = None if owner is None else pieces.get_tensor(row.ldm)
        lendable = weight is not None and weight.dtype.itemsize == 1 and weight.dtype.is_floating_point
        if key is None or weight is None or not isinstance(owner, nn.Linear) or not lendable:
            left.append(row)
            continue
        scale = pieces.get_tensor(key)
        if row.share is not None and scale.numel() > 1:
            scale = scale[row.share.rows(len(scale))]
        lend(owner, as_model(weight, row), scale, dtype)
        state |= {f"{layer}.codes": owner.codes, f"{layer}.scale": owner.scale}
    return state, left


def as_built(rows: Sequence[Row]) -> list[Row]:
    """The same rows for files whose keys are already the model's, as in a diffusers folder."""
    return [Row(row.hf, row.hf, row.model_shape) for row in rows]
