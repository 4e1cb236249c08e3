"""Another metadata on a safetensors file whose tensors stay where they are, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.formats import header, io

_WINDOW, _LENGTH = 0x100000, 0x10000  # bytes: what AUTOMATIC1111's first hash reads, as in metadata.py
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
    told = {key: value for key, value in metadata.items() if key not in ("sshs_model_hash", "sshs_legacy_hash")}
    told |= {"sshs_model_hash": _body_hash(path, head.body), "sshs_legacy_hash": "0" * 8}
    start = io.safetensors_header(rows, told)
    if len(start) > _WINDOW:  # the hash would have to contain itself
        del told["sshs_legacy_hash"]
    else:
        told["sshs_legacy_hash"] = _window_hash(path, head.body + _WINDOW - len(start))
    io.write_atomic(output, _parts(io.safetensors_header(rows, told), path, head.body))


def _parts(start: bytes, path: Path, body: int) -> Iterator[bytes]:
    yield start
    yield from _read(path, body)


def _body_hash(path: Path, body: int) -> str:
    digest = hashlib.sha256()
    for piece in _read(path, body):
        digest.update(piece)
    return digest.hexdigest()


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
