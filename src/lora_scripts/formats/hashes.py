"""The hashes that WebUIs know model files by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError
from lora_scripts.formats.io import Buffer, safetensors_parts

if TYPE_CHECKING:
    from torch import Tensor

LEGACY_START, LEGACY_LENGTH = 0x100000, 0x10000
"""Bytes: the window that AUTOMATIC1111's first hash reads."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Hashes:
    """Lower-case hexadecimal; of the bytes as they are on the disk."""

    sha256: str
    """Of the whole file."""
    sshs_model_hash: str
    """SHA-256 of all bytes after the safetensors header; "" for another format."""
    sshs_legacy_hash: str
    """First 8 of the SHA-256 of the 64 KiB at 0x100000."""

    @property
    def autov2(self) -> str:
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        return self.sshs_model_hash[:12]


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with the `sshs_*` hashes that the finished file will have.

    The model hash leaves the header out. The legacy hash reads 64 KiB at 1 MiB: placeholders of its length hold its
    place, and a header that reaches into the window, whose hash would have to contain itself, gets none.
    """
    filled = dict(metadata) | {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}
    header, buffers = safetensors_parts(tensors, filled)
    if len(header) > LEGACY_START:
        del filled["sshs_legacy_hash"]
        header, buffers = safetensors_parts(tensors, filled)
    hashes = _hashes(_chain(header, buffers), len(header))
    filled["sshs_model_hash"] = hashes.sshs_model_hash
    if "sshs_legacy_hash" in filled:
        filled["sshs_legacy_hash"] = hashes.sshs_legacy_hash
    return filled


def sha256_of(path: Path) -> str:
    """Of a whole file. UserError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=path, hint="check the path") from error


def model_hashes(source: Path | bytes) -> Hashes:
    """The hashes of a model file, read once in pieces of 1 MiB. UserError when it cannot be read."""
    if isinstance(source, bytes):
        return _hashes([source], _body_start(source))
    try:
        with source.open("rb") as file:
            start = _body_start(file.read(9))
            file.seek(0)
            return _hashes(iter(lambda: file.read(_CHUNK), b""), start)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=source, hint="check the path") from error


def _chain(header: bytes, buffers: Iterable[Buffer]) -> Iterable[Buffer]:
    yield header
    yield from buffers


def _body_start(start: bytes) -> int | None:
    """Where a safetensors file's tensors begin; None for another format."""
    return 8 + int.from_bytes(start[:8], "little") if start[8:9] == b"{" else None


def _hashes(buffers: Iterable[Buffer], body: int | None) -> Hashes:
    whole, after, window = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    at = 0
    for buffer in buffers:
        view = memoryview(buffer)
        whole.update(view)
        if body is not None:
            after.update(view[max(0, body - at) :])
        window.update(view[max(0, LEGACY_START - at) : max(0, LEGACY_START + LEGACY_LENGTH - at)])
        at += len(view)
    return Hashes(whole.hexdigest(), after.hexdigest() if body is not None else "", window.hexdigest()[:8])
