"""Files are whole: whatever fails, whenever the writer dies."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from lora_scripts.errors import UserError
from lora_scripts.formats import io, locks

OLD, NEW = b"old" * 1000, [b"new" * 500, b"newer" * 500, b"newest" * 500]


class Failing:
    """Lets `os.write`, `os.fsync`, `os.replace` and `os.open` through until the nth call of them all, which fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, code: int, *, then_on: bool = False) -> None:
        self.calls, self.nth, self.code, self.then_on = 0, nth, code, then_on
        for name in ("open", "write", "fsync", "replace"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == self.nth or (self.then_on and self.calls > self.nth):
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


def rest_of(folder: Path, *names: str) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in names]


@pytest.mark.parametrize("then_on", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_failing_call_leaves_a_whole_file(tmp_path: Path, code: int, then_on: bool) -> None:
    path = tmp_path / "x.bin"
    outcomes = []
    for nth in range(1, 100):
        path.write_bytes(OLD)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, nth, code, then_on=then_on)
            try:
                io.write_atomic(path, iter(NEW))
                failed = False
            except UserError as error:
                failed = True
                assert str(path) in str(error)
                assert ("the disk is full" in str(error)) == (code == errno.ENOSPC)
        whole = path.read_bytes()
        assert whole in (OLD, b"".join(NEW)) and rest_of(tmp_path, "x.bin") == []
        outcomes.append((failed, whole == OLD))
        if failing.calls < nth:
            break
    # open, three writes, fsync, replace fail: the old file stands. Opening or syncing the folder fails: told, and new.
    folder = [(True, False)] * (0 if sys.platform == "win32" else 2)
    assert outcomes == [(True, True)] * 6 + folder + [(False, False)]


def test_every_failing_call_leaves_a_whole_folder(tmp_path: Path) -> None:
    path = tmp_path / "step-00000100"
    old, new = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "c": b"new c"}
    seen = set()
    for nth in range(1, 100):
        io.write_folder(path, old)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, nth, errno.ENOSPC)
            try:
                io.write_folder(path, new)
            except UserError as error:
                assert str(path) in str(error)
        content = {file.name: file.read_bytes() for file in path.iterdir()}
        assert content in (old, new)
        io.remove_stale_temps(tmp_path)
        assert rest_of(tmp_path, path.name) == []
        seen.add((failing.calls < nth, content == old))
        if failing.calls < nth:
            break
    assert seen == {(False, True), (False, False), (True, False)}


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    io.write_atomic(tmp_path / "x", b"0123456789" * 10)
    assert (tmp_path / "x").read_bytes() == b"0123456789" * 10


def test_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    io.write_atomic(tmp_path / "x", b"1")
    assert calls == ["write", "fsync", "replace"] + (["fsync"] if sys.platform != "win32" else [])


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> object:
        yield b"1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.write_atomic(tmp_path / "x", interrupted())  # type: ignore[arg-type]
    assert rest_of(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_mode_is_what_the_umask_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        io.write_text(tmp_path / "x", "ä\n")
        io.write_folder(tmp_path / "f", {"a": b""})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x", "f/a", "f")]
    assert modes == [0o666 & ~mask, 0o666 & ~mask, 0o777 & ~mask]
    assert (tmp_path / "x").read_bytes() == "ä\n".encode()


def test_refusals_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        io.write_text(tmp_path / "none" / "x", "")
    (tmp_path / "folder" / "in").mkdir(parents=True)
    with pytest.raises(UserError, match="want the same name"):
        io.write_text(tmp_path / "folder", "")
    for long in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "a"):
        with pytest.raises(UserError, match="the name is too long; choose a shorter one"):
            io.write_text(long, "")
    with pytest.MonkeyPatch.context() as patch:  # as Windows refuses a?b, and a disk of its kind everywhere
        Failing(patch, 1, errno.EINVAL)
        with pytest.raises(UserError, match=r"does not take it \(Invalid argument\); choose another name"):
            io.write_text(tmp_path / "x", "")
    if Path("/proc/self").exists():  # a folder that says "no such file" of what is to be made in it
        for path in (Path("/proc/x.png"), Path("/proc/none/x.png")):
            with pytest.raises(UserError, match=r"^/proc/.*: not written: /proc takes no new files; choose another"):
                io.require_writable(path)
    with pytest.raises(UserError, match="want the same name"):
        io.require_writable(tmp_path / "folder")
    io.require_writable(tmp_path / "folder" / "new" / "x")  # whose folder is made, and nothing is left
    assert rest_of(tmp_path, "folder") == [] and list((tmp_path / "folder" / "new").iterdir()) == []


def test_the_real_full_disk(tmp_path: Path) -> None:
    """/dev/full is the system's own disk without space."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    real = os.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "open", lambda path, flags, mode=0o777: real("/dev/full" if flags & os.O_CREAT else path, os.O_WRONLY)
        )
        with pytest.raises(UserError, match="the disk is full"):
            io.write_atomic(tmp_path / "x", b"1")
    assert rest_of(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
from lora_scripts.formats import io
folder, n = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    n += 1
    io.write_atomic(folder / "x", (bytes([n % 251]) * 40_000 for _ in range(20)))
    io.write_folder(folder / f"step-{n % 3}", {"a": bytes([n % 251]) * 9_000, "b": bytes([n % 251]) * 9_000})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_killed_writers_leave_whole_files(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    io.write_atomic(tmp_path / "x", b"\0" * 800_000)
    environment = dict(os.environ, PYTHONPATH=str(Path(io.__file__).parents[2]))
    left = 0
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.05 * float(torch.rand((), generator=generator)))
            child.kill()
        whole = (tmp_path / "x").read_bytes()
        assert len(whole) == 800_000 and len(set(whole)) == 1
        left += len(rest_of(tmp_path, "x", "step-0", "step-1", "step-2"))
        io.remove_stale_temps(tmp_path)
        assert rest_of(tmp_path, "x", "step-0", "step-1", "step-2") == []
        for folder in tmp_path.glob("step-*"):
            a, b = (folder / "a").read_bytes(), (folder / "b").read_bytes()
            assert a == b and len(a) == 9_000 and len(set(a)) == 1
    assert left > 0  # some kills struck in the middle of a write


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
@pytest.mark.parametrize("code", [0, errno.EBADF, errno.ENOLCK])
def test_a_living_writer_is_left_alone(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a network disk: NFS gives no lock of one's own on what is open for reading alone (EBADF), and none at all
    where its lock service is down."""
    import fcntl

    real, left = fcntl.flock, tmp_path / ".lora-scripts-0123456789abcdef.tmp"

    def flock(fd: int, how: int) -> None:
        if code == errno.ENOLCK or (code and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY):
            raise OSError(code, os.strerror(code))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)

    def slowly() -> Iterator[bytes]:
        yield b"1"
        assert io.remove_stale_temps(tmp_path) == []
        yield b"2"

    io.write_atomic(tmp_path / "x", slowly())
    assert (tmp_path / "x").read_bytes() == b"12"
    io.write_folder(tmp_path / "f", {"a": slowly()})
    assert (tmp_path / "f" / "a").read_bytes() == b"12"
    left.write_bytes(b"of a killed one")
    assert io.remove_stale_temps(tmp_path) == ([] if code == errno.ENOLCK else [left])


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_another_command_between_the_two_renames_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes what was moved aside for what a killed writer left, unless it looks who holds the new one."""
    io.write_folder(tmp_path / "step-1", {"a": b"old"})
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if source.suffix == ".tmp":
            assert io.remove_stale_temps(tmp_path) == []
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    io.write_folder(tmp_path / "step-1", {"a": b"new"})
    assert (tmp_path / "step-1" / "a").read_bytes() == b"new" and rest_of(tmp_path, "step-1") == []


@pytest.mark.parametrize("platform", ["win32", "linux"])
def test_what_a_virus_scanner_holds_for_a_moment(
    tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a rename is tried again for a second; elsewhere such a refusal is final."""
    real, held, slept = os.replace, [2], list[float]()

    def replace(source: Path, target: Path) -> None:
        held[0] -= 1
        if held[0] >= 0:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(io, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(io, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(os, "replace", replace)
    if platform == "win32":
        io.write_text(tmp_path / "x", "a")
        held[0] = 3
        io.write_folder(tmp_path / "f", {"a": b"a"})
        assert (tmp_path / "x").read_text() == "a" and (tmp_path / "f" / "a").read_bytes() == b"a" and len(slept) == 5
        slept.clear()
    held[0] = 99
    with pytest.raises(UserError, match="the system does not allow it"):
        io.write_text(tmp_path / "y", "a")
    assert 0.9 < sum(slept) < 1.1 if platform == "win32" else not slept
    assert rest_of(tmp_path, "x", "f") == []


def test_a_path_that_windows_finds_too_long_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that there is no such folder, of a folder that is there."""

    def refuse(*paths: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "The system cannot find the path specified", str(paths[0]))

    monkeypatch.setattr(io, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="takes no path of 260 letters and more; choose a folder with a shorter path"):
        io.write_text(tmp_path / ("x" * 250), "a")
    with pytest.raises(UserError, match="takes no new files"):
        io.write_text(tmp_path / "x", "a")


def test_without_locks_what_was_touched_lately_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where nothing tells whether a writer lives."""
    monkeypatch.setattr(locks, "sys", SimpleNamespace(platform="win32"))
    now, long_ago = (tmp_path / f".lora-scripts-{name}.tmp" for name in ("b", "a"))
    for path in (now, long_ago):
        path.write_bytes(b"")
    os.utime(long_ago, (time.time() - 7200,) * 2)
    assert io.remove_stale_temps(tmp_path) == [long_ago] and now.exists()


def test_a_swap_cut_in_two_is_mended(tmp_path: Path) -> None:
    io.write_folder(tmp_path / "step-1", {"a": b"old"})
    with pytest.MonkeyPatch.context() as patch:
        real, calls = os.replace, []

        def second_dies(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == 2:
                raise SystemExit  # and no code of ours runs after it
            real(source, target)

        patch.setattr(os, "replace", second_dies)
        patch.setattr(os, "rename", lambda source, target: None)
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
        with pytest.raises(SystemExit):
            io.write_folder(tmp_path / "step-1", {"a": b"new"})
    assert not (tmp_path / "step-1").exists()
    io.remove_stale_temps(tmp_path)
    assert (tmp_path / "step-1" / "a").read_bytes() == b"old" and rest_of(tmp_path, "step-1") == []


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "z": torch.randn(3, 5).t(),  # not contiguous
        "a.é": torch.randn(4, dtype=torch.float32).to(torch.bfloat16),
        "h": torch.randn(2, 2).half(),
        "scalar": torch.tensor(7.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "i": torch.arange(5),
        "m": torch.tensor([True, False]),
    }


def test_safetensors_files_are_what_the_library_reads(tmp_path: Path) -> None:
    tensors, metadata = some_tensors(), {"title": '名字 "x"\n', "b": ""}
    io.save_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as handle:
        assert handle.metadata() == metadata
    back = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(back[key], value) and back[key].dtype == value.dtype


def test_safetensors_bytes_are_the_librarys_and_repeat(tmp_path: Path) -> None:
    plain = {key: torch.randn(3, n + 1, dtype=torch.float16) for n, key in enumerate("cab")}
    io.save_safetensors(tmp_path / "x", plain)
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(plain)
    metadata = {f"key{n}": "x" for n in range(30)}
    io.save_safetensors(tmp_path / "x", plain, metadata)
    io.save_safetensors(tmp_path / "y", dict(reversed(plain.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
