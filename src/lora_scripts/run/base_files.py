"""The files of a base under a run: on a CPU its weights are not copied but mapped, so that whoever writes into the file
writes into the model. Linux tells before (`compute.mapped`); elsewhere it is seen before a save."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lora_scripts.compute.mapped import Leases
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Sink
from lora_scripts.families.facts import Facts
from lora_scripts.formats import io
from lora_scripts.formats.hashes import sha256_of
from lora_scripts.formats.numbers import sound_digest

_SAMPLES, _SAMPLE = 64, 4096
"""Places of a file that are looked at, and how many bytes at each: a page."""
_SETTLED = 2_000_000_000
"""Nanoseconds: the coarsest clock of a disk in use (FAT)."""
_WRITING = threading.Lock()
"""Held by who writes into a record: digests are made side by side."""


def model_files(config: TrainConfig, facts: Facts) -> list[Path]:
    """Every file that numbers of the base, or of another VAE, are read from."""
    base, vae = config.base_model, config.vae
    files = [base] if base.is_file() else weights_in(base, facts.parts)
    if vae is None:
        return files if base.is_file() else [*files, *weights_in(base, ["vae"])]
    return [*files, *([vae] if vae.is_file() else weights_in(vae, ["vae"] if (vae / "vae").is_dir() else ["."]))]


def weights_in(folder: Path, parts: Iterable[str]) -> list[Path]:
    """The files of weights in parts of a diffusers folder."""
    return [file for part in parts for file in sorted((folder / part).glob("*.safetensors"))]


@dataclass(frozen=True)
class _Seen:
    """A file as it was."""

    place: tuple[int, int]
    """Of the file on its disk, whatever its name leads to."""
    size: int
    time: int
    """Of its last change, in nanoseconds."""
    changed: int
    """When its name, size, times or content were changed last, in nanoseconds, which no program can set; on Windows
    when it was made."""
    samples: str
    """A digest of bytes all over it."""


@dataclass
class BaseFiles:
    """Files that are being used: seen before they are opened, and held against that later."""

    paths: Iterable[Path]
    digests: dict[Path, str] = field(default_factory=dict)
    """SHA-256 of each; empty before `read`."""
    _seen: dict[Path, _Seen] = field(default_factory=dict)
    _own: set[Path] = field(default_factory=set)
    """Those that nothing is mapped of any more: what becomes of them is no matter."""

    def __post_init__(self) -> None:
        self._seen = {path: _look(path) for path in self.paths}

    def read(self, unread: Callable[[str], bool], *, record: Path | None = None, kind: str = "") -> Mapping[Path, str]:
        """The digests of all files. UserErrors for numbers that are no weights, but in `unread` tensors, and for a file
        that has changed meanwhile.

        `record`: a file in which digests are kept; a file of which place, size, times and samples are as they were then
        is not read again (5 s of a start for 4 GB). `kind`: a word for what is `unread`, which counts with them.
        """
        # All at once: `remembered` may be asked meanwhile, and some of them would say less than it needs.
        self.digests = {
            path: _digest(path, seen, record, kind, partial(sound_digest, path, unread))
            for path, seen in self._seen.items()
        }
        self.require_unchanged()
        return self.digests

    def begin(
        self, unread: Callable[[str], bool], *, record: Path | None = None, kind: str = ""
    ) -> Callable[[], Mapping[Path, str]]:
        """`read`, in a thread beside whatever comes meanwhile. What waits for it, and gives or raises what it does."""
        told = Future[Mapping[Path, str]]()

        def work() -> None:
            try:
                told.set_result(self.read(unread, record=record, kind=kind))
            except BaseException as error:
                told.set_exception(error)

        threading.Thread(target=work, name="digests", daemon=True).start()  # nobody waits for it where another fault is
        return told.result

    def remembered(self, record: Path | None, what: str, make: Callable[[], str]) -> str:
        """A digest that follows from what these files hold: the one that a record has of them, or what `make` gives,
        which is then kept there. `what`: a name for it that tells it from others of the same files."""
        if record is None or not self.digests:
            return make()
        key, known = " ".join([what, *sorted(self.digests.values())]), _known(record)
        found = known.get(key, [])
        if len(found) != 1 or not isinstance(found[0], str):
            found = [make()]
            _remember(record, key, found)
        return str(found[0])

    def lend(self, leases: Leases, sink: Sink) -> None:
        """From here on, who writes into a file waits until the run has what it needs of it in memory of its own.
        UserError for one that was written to before."""

        def own(path: Path) -> None:
            self._own.add(path)
            text = f"note: somebody writes into {path}; the run goes on with what it was"
            sink(Note(f"{text}, and --resume will want that back"))

        leases.take(self._seen, own)
        self.require_unchanged()

    def require_unchanged(self, *, samples: bool = True) -> None:
        """UserError for a file that was written to. Without `samples` only size and time are looked at.

        A file that was moved away, removed, or replaced by another is no fault: what is mapped is the one before.
        """
        for path, before in self._seen.items():
            if path in self._own:
                continue
            try:
                stat = os.stat(path)
                if (stat.st_dev, stat.st_ino) != before.place:
                    continue
                same_time = (stat.st_size, stat.st_mtime_ns) == (before.size, before.time)
                if same_time and not samples:
                    continue
                now = _look(path)
                # Another time alone: somebody may have touched it, or written the same bytes once more.
                same = (now.size, now.samples) == (before.size, before.samples) and (same_time or self._as_read(path))
            except OSError:
                continue
            if not same:
                hint = "put the right file back, and go on with --resume"
                raise UserError("was written to while it was trained on", file=path, hint=hint)
            self._seen[path] = now

    def _as_read(self, path: Path) -> bool:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.digests.get(path)


def file_digest(path: Path, record: Path | None) -> str:
    """SHA-256 of a file, whatever it holds; as of `BaseFiles.read`, one that `record` knows is not read again."""
    return _digest(path, _look(path), record, "as it is", lambda: sha256_of(path))


def _digest(path: Path, seen: _Seen, record: Path | None, kind: str, make: Callable[[], str]) -> str:
    mark, begun = [kind, *seen.place, seen.size, seen.time, seen.changed, seen.samples], time.time_ns()
    found = _known(record).get(str(path.resolve()), [])
    if found[:-1] == mark:
        return str(found[-1])
    digest = make()
    # One written to just now could be written to again within the same tick of the disk's clock.
    if record is not None and begun - max(seen.time, seen.changed) > _SETTLED:
        _remember(record, str(path.resolve()), [*mark, digest])
    return digest


def _look(path: Path) -> _Seen:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        for number in range(_SAMPLES):
            file.seek(max(0, stat.st_size - _SAMPLE) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return _Seen((stat.st_dev, stat.st_ino), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest.hexdigest())


def _known(record: Path | None) -> dict[str, list[Any]]:
    """What a record holds; one that is damaged holds nothing."""
    try:
        found = json.loads(record.read_text("utf-8")) if record else {}
    except (OSError, ValueError):
        return {}
    rows = found.items() if isinstance(found, dict) else ()
    return {path: row for path, row in rows if isinstance(row, list)}


def _remember(record: Path, key: str, row: list[Any]) -> None:
    with _WRITING:
        io.make_folder(record.parent)
        io.write_text(record, json.dumps(_known(record) | {key: row}, indent=1) + "\n")
