"""A disk that fails: every call to it is counted, and one of them fails as disks do, or is the machine's last."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")

FAULTS = (
    "kill",  # SIGKILL, in a process of its own, instead of the call
    "half",  # the process dies in the middle of a write
    "short",  # a write takes a part only, as the system may
    "full",  # from then on
    "broken, once",
    "broken",  # from then on
    "power",  # the machine stops: what was not synced is gone, names are there
    "power, names lost",  # and every name in a folder that was not synced since then is as it was
)
_CODES = {"full": errno.ENOSPC, "broken": errno.EIO}


class Dead(BaseException):
    """Nothing that the process does from now on reaches the disk."""


@dataclass
class Disk:
    """Within it, stands between `os` and the disk."""

    fault: str
    nth: int
    """The call that fails, from 1 on; 0: none."""
    calls: list[str] = field(default_factory=list)
    """Their names so far."""
    dead: bool = False
    real: dict[str, Callable[..., Any]] = field(default_factory=dict)
    fds: dict[int, Path] = field(default_factory=dict)
    unsynced: set[Path] = field(default_factory=set)
    """Files with bytes that no sync has followed."""
    names: list[tuple[Path, Callable[[], None]]] = field(default_factory=list)
    """What happened to names in a folder that was not synced since then: (the folder, how to undo it)."""

    def __enter__(self) -> Disk:
        self.real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, self._counted(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self.real.items():
            setattr(os, name, call)
        if self.fault.startswith("power"):
            self._power_cut()

    def _power_cut(self) -> None:
        """What a disk need not have kept is gone."""
        if self.fault == "power, names lost":
            for _, undo in reversed(self.names):
                undo()
        for path in self.unsynced:
            if path.is_file():
                os.truncate(path, 0)

    def _counted(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Dead
            self.calls.append(name)
            now, after = len(self.calls) == self.nth, len(self.calls) > self.nth > 0
            what, _, once = self.fault.partition(", ")
            if what in _CODES and (now or (after and not once)):
                raise OSError(_CODES[what], os.strerror(_CODES[what]))
            if now and what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self.dead = now and what in ("power", "half")
            if now and what in ("half", "short"):  # only a write
                args = (args[0], args[1][: max(1, len(args[1]) // 2)])
            elif self.dead:
                raise Dead
            undo = None if kwargs else self._undo(name, args)
            result = self.real[name](*args, **kwargs)
            self._done(name, args, result, undo)
            if self.dead:
                raise Dead
            return result

        return call

    def _undo(self, name: str, args: tuple[Any, ...]) -> Callable[[], None] | None:
        """How to undo what a call is about to do to a name."""
        if name in ("replace", "rename"):
            source, target = map(Path, args)
            old = target.read_bytes() if target.is_file() else None

            def back() -> None:
                target.rename(source)
                if old is not None:
                    target.write_bytes(old)

            return back
        if name == "open" and len(args) > 1 and args[1] & os.O_CREAT:
            return lambda: Path(args[0]).unlink(missing_ok=True)
        return (lambda: shutil.rmtree(args[0], ignore_errors=True)) if name == "mkdir" else None

    def _done(self, name: str, args: tuple[Any, ...], result: Any, undo: Callable[[], None] | None) -> None:
        if name == "open":
            self.fds[result] = Path(args[0])
        elif name == "write":
            self.unsynced.add(self.fds[args[0]])
        elif name == "fsync":
            path = self.fds[args[0]]
            self.unsynced.discard(path)
            self.names = [row for row in self.names if row[0] != path]
        elif name in ("replace", "rename"):
            source, target = map(Path, args)
            self.unsynced = {_moved(path, source, target) for path in self.unsynced}
            self.fds = {fd: _moved(path, source, target) for fd, path in self.fds.items()}
        if undo is not None:
            self.names.append((Path(args[-1] if name in ("replace", "rename") else args[0]).parent, undo))


def _moved(path: Path, source: Path, target: Path) -> Path:
    return target / path.relative_to(source) if path == source or source in path.parents else path


@dataclass(frozen=True)
class Ended:
    """How it ended."""

    calls: list[str]
    """What was called; nothing where the process is gone."""
    told: str = ""
    """The fault as a person reads it; empty for none."""
    died: bool = False


def with_fault(act: Callable[[], object], fault: str, nth: int) -> Ended:
    """`act`, in which the nth call to the disk fails. An error that nobody has put into words is raised.

    Power goes in the end, if it did not go before: what was told to be written must be there all the same.
    """
    if fault == "kill":
        return _killed(act, nth)
    with Disk(fault, nth) as disk:
        try:
            act()
        except UserError as error:
            return Ended(disk.calls, str(error))
        except Dead:
            return Ended(disk.calls, died=True)
    return Ended(disk.calls)


def _killed(act: Callable[[], object], nth: int) -> Ended:
    """In a fork of this process, for its end is real."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with Disk("kill", nth) as disk:
            act()
        os.write(writing, json.dumps(disk.calls).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert bool(said) != (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    return Ended(json.loads(said)) if said else Ended([], died=True)


def every_fault(calls: list[str]) -> Iterator[tuple[str, int]]:
    """(fault, nth) for every one of the calls, and one beyond the last."""
    for fault in FAULTS:
        for nth, name in enumerate([*calls, ""], 1):
            if fault not in ("half", "short") or name == "write":
                yield fault, nth
