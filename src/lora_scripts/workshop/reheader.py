"""Another metadata on a safetensors file whose tensors stay where they are, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.formats import header, io
from lora_scripts.formats.hashes import model_hashes

_WINDOW, _LENGTH = 0x100000, 0x10000  # bytes: what AUTOMATIC1111's first hash reads, as in formats/hashes.py
_CHUNK = 1 << 20


def rewrite(path: Path, output: Path, metadata: Mapping[str, str]) -> None:
    """Writes `path` to `output` (which may be the same) with `metadata`, its `sshs_*` hashes made true.

    `sshs_model_hash` is of the bytes after the header, so it never changes. UserError when a file cannot be read or
    written; the old one then still stands.
    """
    head = header.read_header(path)
    rows = [
        io.Row(name, info.dtype, info.shape, info.span[1] - info.span[0])
        for name, info in sorted(head.tensors.items(), key=lambda item: item[1].span)
    ]
    filled = {key: value for key, value in metadata.items() if key not in ("sshs_model_hash", "sshs_legacy_hash")}
    filled |= {"sshs_model_hash": model_hashes(path).sshs_model_hash, "sshs_legacy_hash": "0" * 8}
    start = io.safetensors_header(rows, filled)
    if len(start) > _WINDOW:  # the hash would have to contain itself
        del filled["sshs_legacy_hash"]
    else:
        filled["sshs_legacy_hash"] = _window_hash(path, head.body + _WINDOW - len(start))
    io.write_atomic(output, _parts(io.safetensors_header(rows, filled), path, head.body))


def _parts(start: bytes, path: Path, body: int) -> Iterator[bytes]:
    yield start
    yield from _read(path, body)


def _window_hash(path: Path, at: int) -> str:
    with path.open("rb") as file:
        file.seek(at)
        return hashlib.sha256(file.read(_LENGTH)).hexdigest()[:8]


def _read(path: Path, at: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(at)
            while piece := file.read(_CHUNK):
                yield piece
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror or error}", file=path, hint="check its permissions"
        ) from error
