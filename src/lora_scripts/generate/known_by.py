"""The hashes by which a picture names the files it was made with: each computed once, beside what comes meanwhile where
it was begun early. That of a base of 7 GB takes ten seconds."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import cache
from pathlib import Path

from lora_scripts.formats.hashes import model_hashes, sha256_of

_File = tuple[Path, int, int]
_begun: dict[_File, Future[str]] = {}
_beginning = threading.Lock()


def begin(path: Path) -> None:
    """Computes the SHA-256 of a file in a thread, unless that is done or under way; of a folder nothing."""
    if path.is_file():
        _begin(path)


def file_hash(path: Path) -> str:
    """SHA-256 of the whole file. UserError when it cannot be read."""
    return _begin(path).result()


def model_hash(path: Path) -> str | None:
    """The AutoV2 of a base; None for a folder."""
    return file_hash(path)[:10] if path.is_file() else None


def lora_hash(path: Path) -> str:
    """Its AutoV3. UserError when it cannot be read."""
    return _autov3(_file(path))


@cache
def _autov3(file: _File) -> str:
    return model_hashes(file[0]).autov3


def _begin(path: Path) -> Future[str]:
    file = _file(path)
    with _beginning:
        if (told := _begun.get(file)) is None:
            told = _begun[file] = Future()
            threading.Thread(target=_tell, args=(path, told), name="hash", daemon=True).start()
    return told


def _tell(path: Path, told: Future[str]) -> None:
    try:
        told.set_result(sha256_of(path))
    except BaseException as error:
        told.set_exception(error)


def _file(path: Path) -> _File:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns
