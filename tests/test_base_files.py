"""A base that changes under a run: it is mapped, not copied, so whoever writes into its file writes into the model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from safetensors.torch import load_file, save_file

import tiny
from lora_scripts.cli import main
from lora_scripts.compute import mapped
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Progress, Stepped
from lora_scripts.run import base_files, story
from lora_scripts.run.base_files import BaseFiles
from lora_scripts.run.configs import load_config
from lora_scripts.run.preflight import preflight

Capsys: TypeAlias = pytest.CaptureFixture[str]


@pytest.fixture
def own(base: Path, tmp_path: Path) -> Path:
    """The base, to be spoilt."""
    return Path(shutil.copy(base, tmp_path / "own.safetensors"))


@pytest.fixture
def config(own: Path, data: Path, tmp_path: Path) -> Path:
    return tiny.write_config(tmp_path, base_model=own, train_data_dir=data, targets="['*.mid_block.*attn2*']")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Another model of the same shapes."""
    return tiny.write_base(tmp_path_factory.mktemp("other") / "base.safetensors", seed=1).read_bytes()


def overwrite(path: Path, data: bytes) -> None:
    """In place, as a copy program or a download does."""
    with path.open("r+b") as file:
        file.write(data)


def at_step(step: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    train = story.train

    def watched(*rest: Any, sink: Any, **more: Any) -> Any:
        def tell(event: Event) -> None:
            sink(event)
            if isinstance(event, Stepped) and event.step == step:
                act()

        return train(*rest, sink=tell, **more)

    monkeypatch.setattr(story, "train", watched)


@pytest.fixture(scope="module")
def unbroken(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last state of a run in peace."""
    folder = tmp_path_factory.mktemp("unbroken")
    config = tiny.write_config(folder, base_model=base, train_data_dir=data, targets="['*.mid_block.*attn2*']")
    assert main(["train", "--config", str(config)]) == 0
    return last_state(folder)


def last_state(folder: Path) -> bytes:
    return (folder / "out" / "state" / "step-00000006" / "lora.safetensors").read_bytes()


def lent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk of the network."""
    monkeypatch.setattr(mapped.Leases, "take", lambda *_: None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lends files")
@pytest.mark.parametrize("how", ["overwritten", "cut short by another process"])
def test_who_writes_into_the_base_waits_until_the_run_has_it_and_changes_nothing(
    how: str, config: Path, own: Path, other: bytes, unbroken: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    """It is mapped: without this, one ends as another LoRA, the other in SIGBUS. What is left of the file is read again
    for the proof in the end: one that is cut short is told then, with everything learnt and saved."""

    def spoil() -> None:
        if how == "overwritten":
            overwrite(own, other)
        else:
            code = "import os, sys; os.truncate(sys.argv[1], 1000)"
            subprocess.run([sys.executable, "-SE", "-c", code, str(own)], check=True)

    at_step(3, spoil, monkeypatch)
    code, told = main(["train", "--config", str(config)]), capsys.readouterr()
    words = f"note: somebody writes into {own}; the run goes on with what it was, and --resume will want that back"
    assert words in " ".join(told.out.split())
    assert last_state(own.parent) == unbroken and (own.parent / "out" / "out.safetensors").is_file()
    if how == "overwritten":
        assert code == 0 and own.read_bytes() == other
    else:
        assert code == 2 and told.err.startswith(f"error: {own}: truncated: 1,000 of ") and told.err.count("\n") == 1


def test_a_base_that_is_overwritten_stops_the_run_and_the_last_state_stays(
    config: Path, own: Path, other: bytes, unbroken: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    """Where nothing is lent."""
    lent_nothing(monkeypatch)
    whole, argv = own.read_bytes(), ["train", "--config", str(config)]
    with monkeypatch.context() as patch:
        at_step(3, lambda: overwrite(own, other), patch)
        assert main(argv) == 2
    told = capsys.readouterr().err
    assert told == (
        f"error: {own}: was written to while it was trained on; put the right file back, and go on with --resume\n"
    )
    out = own.parent / "out"
    assert [p.name for p in (out / "state").iterdir()] == ["step-00000002"]
    assert not (out / "out.safetensors").exists() and not list(out.glob("*step000004*"))
    assert main([*argv, "--resume"]) == 2
    assert "because something changed: base_model" in capsys.readouterr().err
    overwrite(own, whole)
    assert main([*argv, "--resume"]) == 0
    assert last_state(own.parent) == unbroken


def test_a_vae_that_is_overwritten_while_it_encodes_leaves_a_clean_cache(
    config: Path, own: Path, other: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent_nothing(monkeypatch)
    loaded = load_config(config)
    ready = preflight(loaded, resume=False)

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 3:  # two of the pictures are alike, and encoded once
            overwrite(own, other)

    with pytest.raises(UserError, match="was written to while it was trained on"):
        story.train(loaded, ready.folder, ready.samples, resume=False, sink=sink)
    assert len(list((tmp_path / "out" / "cache").rglob("*.safetensors"))) == 2


def test_what_does_not_touch_the_mapped_numbers_is_no_fault(own: Path, other: bytes, tmp_path: Path) -> None:
    whole = own.read_bytes()
    files = BaseFiles([own])
    files.read(lambda name: False)
    os.utime(own, (1, 1))
    files.require_unchanged()
    overwrite(own, whole)
    files.require_unchanged()
    os.utime(own, ns=(2, 2))
    files.require_unchanged(samples=False)
    changed = bytearray(whole)
    changed[len(whole) // 2 + 3000] ^= 1  # a bit between two samples; but the time tells that there is something to see
    overwrite(own, bytes(changed))
    with pytest.raises(UserError, match=r"own\.safetensors: was written to"):
        files.require_unchanged()
    overwrite(own, whole)
    files = BaseFiles([own])
    files.read(lambda name: False)
    stat = own.stat()
    overwrite(own, other)
    os.utime(own, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # by somebody who keeps the time
    files.require_unchanged(samples=False)
    with pytest.raises(UserError, match="was written to"):
        files.require_unchanged()
    overwrite(own, whole)
    own.with_name("new").write_bytes(other)
    own.with_name("new").replace(own)  # the file that is mapped has no name any more, and is as it was
    files.require_unchanged()
    own.unlink()
    files.require_unchanged()


def test_a_file_that_changes_while_it_is_read_is_told(own: Path, other: bytes) -> None:
    files = BaseFiles([own])
    overwrite(own, other)
    with pytest.raises(UserError, match="was written to"):
        files.read(lambda name: False)


# --- remembered digests -----------------------------------------------------------------------------------------------


def test_a_digest_is_remembered_until_anything_of_the_file_changes(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, readings = tmp_path / "cache" / "digests.json", list[Path]()
    true = base_files.sound_digest

    def counted(path: Path, unread: Callable[[str], bool]) -> str:
        readings.append(path)
        return true(path, unread)

    monkeypatch.setattr(base_files, "sound_digest", counted)

    def read(kind: str = "") -> str:
        return BaseFiles([own]).read(lambda name: False, record=record, kind=kind)[own]

    first = read()
    assert first == hashlib.sha256(own.read_bytes()).hexdigest()
    assert read() == first and len(readings) == 2  # written to a moment ago: not to be relied upon
    monkeypatch.setattr(base_files, "_SETTLED", -1)
    assert read() == read() == first and len(readings) == 3
    assert read("its VAE unread") == first and len(readings) == 4
    assert read() == first and len(readings) == 5  # one row for each file
    before, data = own.stat(), bytearray(own.read_bytes())
    data[-1] ^= 1
    overwrite(own, data)
    os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))  # as some programs do
    assert read() == hashlib.sha256(data).hexdigest() != first and len(readings) == 6
    known = BaseFiles([own], digests={own: first})
    for name in ("vae", "text"):
        assert known.remembered(record, name, partial(str, name)) == name
    assert known.remembered(record, "vae", lambda: "made again") == "vae"
    known.digests[own] = "another"
    assert known.remembered(record, "vae", lambda: "of another file") == "of another file"
    assert read() == hashlib.sha256(data).hexdigest() and len(readings) == 6  # its rows are still there
    record.write_text('{"a": ')
    assert read() == hashlib.sha256(data).hexdigest() and len(readings) == 7


def test_digests_are_made_beside_other_work(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waits for the other, both are remembered, and a fault is told to who asks."""
    record, true, both = tmp_path / "digests.json", base_files.sound_digest, threading.Barrier(2, timeout=60)
    monkeypatch.setattr(base_files, "_SETTLED", -1)
    monkeypatch.setattr(base_files, "sound_digest", lambda path, unread: both.wait() >= 0 and true(path, unread))
    second = Path(shutil.copy(own, tmp_path / "second.safetensors"))
    waiting = [BaseFiles([path]).begin(lambda name: False, record=record) for path in (own, second)]
    whole = hashlib.sha256(own.read_bytes()).hexdigest()
    assert [read() for read in waiting] == [{own: whole}, {second: whole}]
    assert json.loads(record.read_text()).keys() == {str(own), str(second)}
    monkeypatch.setattr(base_files, "sha256_of", lambda path: "read once")
    assert [base_files.file_digest(second, record) for _ in range(2)] == ["read once"] * 2
    monkeypatch.setattr(base_files, "sound_digest", true)
    monkeypatch.setattr(base_files, "sha256_of", lambda path: "read again")
    assert base_files.file_digest(own, record) == base_files.file_digest(own, record) == "read again"
    assert BaseFiles([own]).begin(lambda name: False, record=record)() == {own: whole}  # another kind of reading
    spoilt = load_file(own)
    next(iter(spoilt.values())).fill_(math.nan)
    save_file(spoilt, own)
    asked, go_on = threading.Event(), threading.Event()
    files = BaseFiles([second, own])
    read = files.begin(lambda name: asked.set() is None and go_on.wait(60), record=record)
    assert asked.wait(60)  # one file is read, the other is not: what follows from both is not known by the one
    assert files.remembered(record, "vae", lambda: "made") == "made" and f"vae {whole}" not in json.loads(
        record.read_text()
    )
    go_on.set()
    assert read()[second] == whole
    read = BaseFiles([own]).begin(lambda name: False)
    with pytest.raises(UserError, match="not finite"):
        read()
