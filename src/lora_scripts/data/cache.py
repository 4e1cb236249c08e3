"""Tensors on disk, named by what they were computed from, so that nothing stale can be found."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

import safetensors.torch
import torch
from safetensors import SafetensorError

from lora_scripts.errors import UserError

FORMAT = 1
"""Part of every key: raised when what is stored, or how, changes its meaning."""

Part = str | int | float | None | tuple["Part", ...]


def cache_key(*parts: Part) -> str:
    """A name (64 hex digits) for what `parts` describe: equal for equal parts, different for different ones.

    Types count (1, 1.0, True and "1" differ), and so does nesting: ("ab", "c") is not ("a", "bc").
    """
    return hashlib.sha256(_encode((FORMAT, parts))).hexdigest()


class Cache:
    """A folder of safetensors files, one per key. A damaged file, or one under another entry's name, counts as absent.

    `write(path, data)` writes a file so that it is there whole or not at all. The first `keep` bytes of entries that
    are read or put stay in memory, and nobody changes them; all others are read whenever they are asked for.
    """

    def __init__(self, folder: Path, write: Callable[[Path, bytes], None], keep: int = 0) -> None:
        self.folder, self._write = folder, write
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        self._room, self._lock = keep, Lock()

    @property
    def held(self) -> int:
        """Bytes of the tensors that are kept in memory."""
        return sum(tensor.nbytes for entry in self._kept.values() for tensor in entry.values())

    def path(self, key: str) -> Path:
        """Where the entry lies: 256 subfolders keep folders short."""
        assert re.fullmatch("[0-9a-f]{64}", key), key
        return Path(self._place(key))

    def _place(self, key: str) -> str:
        """The same; a start asks it for every picture, and a `Path` takes longer than looking there."""
        return f"{self.folder}/{key[:2]}/{key[2:]}.safetensors"

    def ready(self, key: str) -> bool:
        """Whether the entry is there: looked for, not read, so that a start with many of them is short. A damage shows
        when it is read."""
        if key in self._kept:
            return True
        try:
            return os.stat(self._place(key)).st_size > 0
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unreadable(self.path(key), error) from None

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors put under `key`, on the CPU, or None. Raises UserError if the folder cannot be read."""
        if (kept := self._kept.get(key)) is not None:
            return kept
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from None
        try:
            tensors = safetensors.torch.load(data)
            # the library checks sizes, not contents: without a digest a flipped bit would be trained on
            if _stored_digest(data) != _digest(key, tensors):
                return None
        except (SafetensorError, ValueError, LookupError):
            return None
        self._keep(key, tensors)
        return tensors

    def _keep(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """In memory, until the first that does not fit any more."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        with self._lock:
            if 0 < size <= self._room:
                self._kept[key] = tensors
            self._room -= size

    def drop(self, key: str) -> None:
        """Leaves an empty file in place of a damaged one: so every later start sees that it is to be made again."""
        if self.path(key).exists():
            self._write(self.path(key), b"")

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Stores copies of the tensors. Raises UserError if the folder cannot be made, and whatever `write` raises."""
        path = self.path(key)
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"the cache folder cannot be made: {reason}", file=path.parent) from None
        self._write(path, safetensors.torch.save(copies, metadata={"sha256": _digest(key, copies)}))
        self._keep(key, copies)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"the cache cannot be read: {error.strerror or error}", file=path)


def _encode(part: Part) -> bytes:
    """Type, length and content, so that no two values share an encoding."""
    if isinstance(part, str):
        body = part.encode("utf-8", "surrogatepass")
    elif isinstance(part, tuple):
        body = b"".join(map(_encode, part))
    elif isinstance(part, float):
        body = part.hex().encode()
    elif part is None or isinstance(part, int):
        body = str(part).encode()
    else:
        raise TypeError(f"not a part of a key: {part!r}")
    return b"%s:%d:%s" % (type(part).__name__.encode(), len(body), body)


def _digest(key: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(key.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_encode((name, str(tensor.dtype), tuple(tensor.shape))))
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored_digest(data: bytes) -> str | None:
    """From the file's header: 8 bytes of length, little endian, then JSON (the safetensors format)."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    digest = header.get("__metadata__", {}).get("sha256")
    return digest if isinstance(digest, str) else None
