"""A base that changes under a run: it is mapped, not copied, so whoever writes into its file writes into the model."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Progress, Stepped
from lora_scripts.run import base_files, story
from lora_scripts.run.base_files import BaseFiles
from lora_scripts.run.configs import load_config
from lora_scripts.run.preflight import preflight


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


def test_a_base_that_is_overwritten_stops_the_run_and_the_last_state_stays(
    config: Path,
    own: Path,
    other: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, argv = own.read_bytes(), ["train", "--config", str(config)]
    assert main([*argv, f"output_dir={tmp_path / 'unbroken'}"]) == 0
    with monkeypatch.context() as patch:
        at_step(3, lambda: overwrite(own, other), patch)
        assert main(argv) == 2
    told = capsys.readouterr().err
    assert told == (
        f"error: {own}: was written to while it was trained on; put the right file back, and go on with --resume\n"
    )
    out = tmp_path / "out"
    assert [p.name for p in (out / "state").iterdir()] == ["step-00000002"]
    assert not (out / "out.safetensors").exists() and not list(out.glob("*step000004*"))
    assert main([*argv, "--resume"]) == 2
    assert "because something changed: base_model" in capsys.readouterr().err
    overwrite(own, whole)
    assert main([*argv, "--resume"]) == 0
    states = [folder / "state" / "step-00000006" / "lora.safetensors" for folder in (out, tmp_path / "unbroken")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_a_vae_that_is_overwritten_while_it_encodes_leaves_a_clean_cache(
    config: Path, own: Path, other: bytes, tmp_path: Path
) -> None:
    loaded = load_config(config)
    ready = preflight(loaded, resume=False)

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 2:
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
    record.write_text('{"a": ')
    assert read() == hashlib.sha256(data).hexdigest() and len(readings) == 7
