"""Whether the numbers in a safetensors file can be weights at all, told while the file is read for its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats.header import DOWNLOAD, Header, TensorInfo, read_header
from lora_scripts.formats.io import Buffer

# Type -> the integer that is as wide, and the bits that are all set in NaN and infinity, and in no other number.
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 0x1F << 10),
    "F8_E5M2": ("u1", 0x1F << 2),
    "F8_E4M3": ("u1", 0x7F),  # it has no infinity, and one NaN
}
_PIECE = 1 << 20  # bytes: as they come from the disk, and stay in the processor's cache
_ZEROS = 4096
"""Bytes of zeros at the end of a file from which on it may be a download that did not end: a page of its disk."""


def finite(piece: Buffer, dtype: str) -> bool:
    """Whether every number of a tensor's bytes, or of whole numbers of it, is finite; True for other types than floats.

    10 GB a second, a tenth of the time that the digest of the same bytes takes.
    """
    import numpy as np

    if dtype not in _NOT_FINITE or not memoryview(piece).nbytes:
        return True
    kind, mask = _NOT_FINITE[dtype]
    numbers = np.frombuffer(piece, kind)
    return int((numbers & numbers.dtype.type(mask)).max()) != mask


def sound_digest(path: Path, unread: Callable[[str], bool] = lambda name: False) -> str:
    """SHA-256 of a safetensors file. UserErrors, in the same reading, for numbers that are not finite, and for zeros
    from somewhere in a weight to the end: a download into a file of the right size that was not finished.

    `unread`: tensors that nobody reads, and that may be anything.
    """
    header = read_header(path)
    digest, broken = hashlib.sha256(), list[str]()
    try:
        with path.open("rb") as file:
            digest.update(file.read(header.body))
            for name, info in _in_order(header):
                sound = True
                for piece in _pieces(file, info.span[1] - info.span[0]):
                    digest.update(piece)
                    sound = sound and finite(piece, info.dtype)
                if not (sound or unread(name)):
                    broken.append(name)
            zeros = _zeros_at_the_end(file, header)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=path, hint="check the path") from error
    faults = [not_finite(path, broken)] if broken else []
    if name := _cut_in(header, zeros, unread):
        text = f"its last {zeros:,} bytes are zeros, from {name} on: a download that was not finished"
        faults.append(UserError(text, file=path, hint=DOWNLOAD))
    raise_all(faults)
    return digest.hexdigest()


def not_finite(path: Path | str, names: list[str]) -> UserError:
    """The fault of tensors with NaN or infinity among their numbers."""
    many = f"{len(names)} tensors hold" if len(names) > 1 else "a tensor holds"
    text = f"{many} numbers that are not finite (NaN or infinity): {', '.join(names[:3])}"
    return UserError(text + (", …" if len(names) > 3 else ""), file=path, hint=DOWNLOAD)


def _in_order(header: Header) -> list[tuple[str, TensorInfo]]:
    """As they lie in the file, side by side."""
    return sorted(header.tensors.items(), key=lambda item: item[1].span)


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = file.read(min(_PIECE, size))
        if not piece:
            raise OSError("the file became shorter while it was read")
        size -= len(piece)
        yield piece


def _zeros_at_the_end(file: BinaryIO, header: Header) -> int:
    """How many bytes of tensors are zeros, counted from the end of the file."""
    at, zeros = file.seek(0, 2), 0
    while at > header.body:
        start = max(header.body, at - _PIECE)
        file.seek(start)
        piece = file.read(at - start)
        rest = len(piece.rstrip(b"\0"))
        zeros += len(piece) - rest
        if rest:
            break
        at = start
    return zeros


def _cut_in(header: Header, zeros: int, unread: Callable[[str], bool]) -> str:
    """The first weight that zeros at the end of a file make no sense in; "" for none.

    A matrix may end in rows of zeros, which pad it (a table of words). But zeros that begin in the middle of a row, or
    that fill a whole matrix, are no weights.
    """
    end = max((info.span[1] for info in header.tensors.values()), default=0)
    if zeros < _ZEROS:
        return ""
    for name, info in _in_order(header):
        begin, stop = info.span
        if stop <= end - zeros or len(info.shape) < 2 or begin == stop or unread(name):
            continue
        inside = end - zeros - begin
        if inside <= 0 or inside % ((stop - begin) // info.shape[0]):
            return name
    return ""
