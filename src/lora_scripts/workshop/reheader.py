"""`lora-scripts metadata`: what a file says of itself, shown and changed; its tensors stay, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats import io
from lora_scripts.formats.gguf import read_model
from lora_scripts.formats.hashes import LEGACY_LENGTH, LEGACY_START, model_hashes
from lora_scripts.formats.header import read_header
from lora_scripts.loras import private

_CHUNK = 1 << 20
_COMPUTED = ("sshs_model_hash", "sshs_legacy_hash")


@dataclass(frozen=True)
class FileMetadata:
    """What a file says of itself."""

    file: Path
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class ChangedMetadata:
    """What it says now that it did not, and no longer."""

    file: Path
    output: Path
    removed: Mapping[str, str]
    added: Mapping[str, str]
    changed: Mapping[str, str]
    """With the new values."""


def show(file: Path) -> FileMetadata:
    """The metadata, sorted by key. UserError when the file cannot be read."""
    return FileMetadata(file, dict(sorted(read_model(file).metadata.items())))


def change(
    file: Path, output: Path, values: Mapping[str, str], *, strip: bool = False, make_private: bool = False
) -> ChangedMetadata:
    """Writes the file with other metadata, its hashes made true. An empty value takes the key out.

    UserError for a hash that somebody wants to set, and when a file cannot be read or written.
    """
    raise_all(
        [
            UserError(f"--set {key}=…: this hash is computed from the file", hint="leave it out")
            for key in values
            if key in _COMPUTED
        ]
    )
    before = show(file).metadata
    wanted = private.strip(before) if strip else before
    wanted = private.make_private(wanted) if make_private else wanted
    rewrite(file, output, {key: value for key, value in {**wanted, **values}.items() if value})
    after = show(output).metadata
    return ChangedMetadata(
        file,
        output,
        removed={key: value for key, value in before.items() if key not in after},
        added={key: value for key, value in after.items() if key not in before},
        changed={key: value for key, value in after.items() if before.get(key, value) != value},
    )


def rewrite(path: Path, output: Path, metadata: Mapping[str, str]) -> None:
    """Writes `path` to `output` (which may be the same) with `metadata`, its `sshs_*` hashes made true.

    `sshs_model_hash` is of the bytes after the header, so it never changes. UserError when a file cannot be read or
    written; the old one then still stands.
    """
    head = read_header(path)
    rows = [
        io.Row(name, info.dtype, info.shape, info.span[1] - info.span[0])
        for name, info in sorted(head.tensors.items(), key=lambda item: item[1].span)
    ]
    filled = {key: value for key, value in metadata.items() if key not in _COMPUTED}
    filled |= {"sshs_model_hash": model_hashes(path).sshs_model_hash, "sshs_legacy_hash": "0" * 8}
    start = io.safetensors_header(rows, filled)
    if len(start) > LEGACY_START:  # the hash would have to contain itself
        del filled["sshs_legacy_hash"]
    else:
        filled["sshs_legacy_hash"] = _window_hash(path, head.body + LEGACY_START - len(start))
    io.write_atomic(output, _parts(io.safetensors_header(rows, filled), path, head.body))


def _parts(start: bytes, path: Path, body: int) -> Iterator[bytes]:
    yield start
    yield from _read(path, body)


def _window_hash(path: Path, at: int) -> str:
    with path.open("rb") as file:
        file.seek(at)
        return hashlib.sha256(file.read(LEGACY_LENGTH)).hexdigest()[:8]


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
