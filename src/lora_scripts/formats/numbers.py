"""Whether the numbers in a model file can be weights at all, told while the file is read for its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats.gguf import PACKED, read_model
from lora_scripts.formats.header import DOWNLOAD, Header, TensorInfo, opened
from lora_scripts.formats.io import Buffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Type -> the integer that is as wide, and the bits that are all set in NaN and infinity, and in no other number.
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 0x1F << 10),
    "F8_E5M2": ("u1", 0x1F << 2),
    "F8_E4M3": ("u1", 0x7F),  # it has no infinity, and one NaN
}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_PIECE = 1 << 20  # bytes: as they come from the disk, and stay in the processor's cache
_ZEROS = 4096
"""Bytes of zeros at the end of a file from which on it may be a download that did not end: a page of its disk."""


def finite(piece: Buffer, dtype: str) -> bool:
    """Whether every number of a tensor's bytes, or of whole numbers or blocks of it, is finite; True for integers.

    10 GB a second, a tenth of the time that the digest of the same bytes takes.
    """
    import numpy as np

    if dtype in PACKED:  # its scales are the only floats
        blocks = np.frombuffer(piece, "u1").reshape(-1, PACKED[dtype].size)
        return all(finite(blocks[:, at : at + 2].tobytes(), "F16") for at in PACKED[dtype].scales)
    if dtype not in _NOT_FINITE or not memoryview(piece).nbytes:
        return True
    kind, mask = _NOT_FINITE[dtype]
    numbers = np.frombuffer(piece, kind)
    return int((numbers & numbers.dtype.type(mask)).max()) != mask


def read_floats(path: Path, header: Header, name: str) -> NDArray[Any]:
    """A small tensor of floats in a safetensors file, flat, as float64."""
    import numpy as np

    info = header.tensors[name]
    with opened(path), path.open("rb") as file:
        file.seek(header.body + info.span[0])
        raw = file.read(info.span[1] - info.span[0])
    if info.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype("f8")
    if info.dtype in _NUMPY:
        return np.frombuffer(raw, _NUMPY[info.dtype]).astype("f8")
    from safetensors import safe_open

    with safe_open(path, "pt") as handle:  # float8, which NumPy has not
        floats: NDArray[Any] = handle.get_tensor(name).flatten().double().numpy()
    return floats


def sound_digest(path: Path, unread: Callable[[str], bool] = lambda name: False) -> str:
    """SHA-256 of a safetensors or GGUF file. UserErrors, in the same reading, for numbers that are not finite, and for
    zeros from somewhere in a weight to the end: a download into a file of the right size that was not finished.

    `unread`: tensors that nobody reads, and that may be anything.
    """
    header = read_model(path)
    digest, broken, at = hashlib.sha256(), list[str](), 0
    try:
        with path.open("rb") as file:
            digest.update(file.read(header.body))
            for name, info in _in_order(header):
                digest.update(file.read(info.span[0] - at))  # GGUF has gaps
                sound, at = True, info.span[1]
                for piece in _pieces(file, at - info.span[0], PACKED[info.dtype].size if info.dtype in PACKED else 1):
                    digest.update(piece)
                    sound = sound and finite(piece, info.dtype)
                if not (sound or unread(name)):
                    broken.append(name)
            digest.update(file.read())
            zeros, first = _zeros_at_the_end(file, header)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=path, hint="check the path") from error
    faults = [not_finite(path, broken)] if broken else []
    if name := _cut_in(header, first, unread) if zeros >= _ZEROS else "":
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


def _pieces(file: BinaryIO, size: int, block: int) -> Iterator[bytes]:
    while size > 0:
        piece = file.read(min(_PIECE // block * block, size))
        if not piece:
            raise OSError("the file became shorter while it was read")
        size -= len(piece)
        yield piece


def _zeros_at_the_end(file: BinaryIO, header: Header) -> tuple[int, int]:
    """(how many bytes of tensors are zeros, counted from the end of the file; where among them they begin)"""
    at, zeros = file.seek(0, 2), 0
    size = at - header.body
    while at > header.body:
        start = max(header.body, at - _PIECE)
        file.seek(start)
        piece = file.read(at - start)
        rest = len(piece.rstrip(b"\0"))
        zeros += len(piece) - rest
        if rest:
            break
        at = start
    return zeros, size - zeros


def _cut_in(header: Header, first: int, unread: Callable[[str], bool]) -> str:
    """The first weight that zeros from there to the end of the file make no sense in; "" for none.

    A matrix may end in rows of zeros, which pad it (a table of words). But zeros that begin in the middle of a row, or
    that fill a whole matrix, are no weights. The last block of a row may end in some.
    """
    for name, info in _in_order(header):
        begin, stop = info.span
        if stop <= first or len(info.shape) < 2 or begin == stop or unread(name):
            continue
        inside, row = first - begin, (stop - begin) // info.shape[0]
        if inside <= 0 or -inside % row >= (PACKED[info.dtype].size if info.dtype in PACKED else 1):
            return name
    return ""
