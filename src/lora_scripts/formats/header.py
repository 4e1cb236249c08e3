"""What a model file is, told from its first bytes and its safetensors header, before anything is loaded or built."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lora_scripts.errors import UserError

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
DOWNLOAD = "download it again, and compare its size with the page it comes from"
_CONVERT = (
    "it can run code when opened, so it is not read here; get the .safetensors version, or convert it in the WebUI: "
    "Checkpoint Merger, one model, No interpolation, Checkpoint format: safetensors"
)


@dataclass(frozen=True)
class Kind:
    """What a file is."""

    words: str
    """With its article: "a LoRA"."""
    mend: str = ""
    """What to do where a base model was wanted; `{base}` stands for the kinds of those."""


EMPTY = Kind("an empty file", DOWNLOAD)
GIT_LFS = Kind(
    "a git-lfs pointer, not the model itself", "run `git lfs pull` in its folder, or download the file itself"
)
HTML = Kind("a web page, not a model", "the download needs a login or a direct link; download the file itself")
PICTURE = Kind("a picture, not a model", "name a model's file; how a picture was drawn is told by the WebUI's PNG Info")
ZIP = Kind("a PyTorch .ckpt/.pt/.bin file (a pickle in a zip)", _CONVERT)
PICKLE = Kind("an old PyTorch .ckpt/.pt file (a pickle)", _CONVERT)
GGUF = Kind("a GGUF file (quantised)", "get the .safetensors version")
NOT_SAFETENSORS = Kind("not a safetensors file", f"name a .safetensors file, or {DOWNLOAD}")


@dataclass(frozen=True)
class TensorInfo:
    """One row of a safetensors header."""

    dtype: str
    """The format's name: F32, F16, BF16, …"""
    shape: tuple[int, ...]
    span: tuple[int, int] = (0, 0)
    """First byte, and the one after the last, counted from the body's start."""


@dataclass(frozen=True, eq=False)  # equal if it is the same one, so that what is told of it can be kept
class Header:
    """A safetensors header: what the file holds, without its values. It may be shared: read it only."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    body: int = 0
    """Where in the file the tensors begin, in bytes."""

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}


def read_header(path: Path) -> Header:
    """Reads and checks a safetensors header in plain Python; the tensors are not touched.

    UserError, in one line: no file, a folder, another format (and which), a truncated or damaged file, a repeated key.
    """
    other = sniff(path)
    if other is not None:
        refuse(other, path)
    with opened(path), path.open("rb") as file:
        total = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER:
            refuse(NOT_SAFETENSORS, path)
        if 8 + length > total:
            truncated(path, total, 8 + length)
        raw = file.read(length)
    return _parsed(path, raw, total - 8 - length)


@functools.lru_cache(maxsize=16)  # a run asks for its base's ten times, and each has thousands of rows
def _parsed(path: Path, raw: bytes, size: int) -> Header:
    """Of a header's bytes, and of how many there are behind it."""
    try:
        rows = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)  # given bytes, json takes half characters
        if b"\\ud" in raw.lower():
            json.dumps(rows, ensure_ascii=False).encode("utf-8")  # no other reader takes them, written out or not
    except (ValueError, RecursionError) as error:
        reason = f"a key stands twice: {error.args[0]}" if isinstance(error, _RepeatedKey) else "not readable"
        raise UserError(f"damaged safetensors header ({reason})", file=path, hint=DOWNLOAD) from None
    if not isinstance(rows, dict):
        refuse(NOT_SAFETENSORS, path)
    metadata = rows.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _damaged(path, "__metadata__ is not a table of texts")
    _check_offsets(path, rows, size)
    tensors = {
        name: TensorInfo(row["dtype"], tuple(row["shape"]), tuple(row["data_offsets"])) for name, row in rows.items()
    }
    return Header(tensors, metadata, 8 + len(raw))


def sniff(path: Path) -> Kind | None:
    """What the first bytes give away, or None when it may be safetensors. UserError when there is no such file."""
    if path.is_dir():
        raise UserError("is a folder, not a file", file=path, hint="name the .safetensors file in it")
    if not path.exists():
        raise UserError("no such file", file=path, hint="check the path")
    if not path.is_file():  # a pipe would block for ever
        raise UserError("is not a plain file", file=path, hint="copy the model to a file")
    with opened(path), path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return EMPTY
    if start.startswith(b"version https://git-lfs"):
        return GIT_LFS
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return HTML
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8")) or start[8:12] == b"WEBP":
        return PICTURE
    if start.startswith(b"PK\x03\x04"):
        return ZIP
    if start.startswith(b"GGUF"):
        return GGUF
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{":
        return PICKLE
    if len(start) < 10 or start[8:9] != b"{":
        return NOT_SAFETENSORS
    return None


def refuse(kind: Kind, path: Path) -> NoReturn:
    """Raises the one line that says what the file is and what to do."""
    raise UserError(f"this is {kind.words}", file=path, hint=kind.mend or None)


class _RepeatedKey(ValueError):
    """A JSON object with one key twice: the format forbids it, and readers disagree on which one counts."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(next(ascii(name)[:120] for name in names if names.count(name) > 1))
    return seen


def _check_offsets(path: Path, rows: Mapping[str, object], size: int) -> None:
    """Every row well formed, and the tensors side by side, from the first byte of the body to the last."""
    spans: list[tuple[int, int, str]] = []
    for name, row in rows.items():
        if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
            _damaged(path, f"the row of {ascii(name)[:120]}")
        dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
        bits = _DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
        if bits is None or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
            _damaged(path, f"the row of {ascii(name)[:120]}")
        if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * bits:
            _damaged(path, f"{ascii(name)[:120]} has the wrong length")
        spans.append((offsets[0], offsets[1], name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            _damaged(path, f"{ascii(name)[:120]} does not follow its neighbour")
        end = stop
    if end > size:
        truncated(path, path.stat().st_size, path.stat().st_size + end - size)
    if end < size:
        _damaged(path, f"{size - end} bytes too many at the end")


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _damaged(path: Path, what: str) -> NoReturn:
    raise UserError(f"damaged safetensors header ({what})", file=path, hint=DOWNLOAD)


def truncated(path: Path, have: int, want: int) -> NoReturn:
    raise UserError(f"truncated: {have:,} of {want:,} bytes are there", file=path, hint=DOWNLOAD)


@contextmanager
def opened(path: Path) -> Iterator[None]:
    """Turns the system's refusal to read into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror or error}", file=path, hint="check its permissions"
        ) from error
