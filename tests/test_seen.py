"""What an earlier start found in a picture holds as long as the file is the same, and not a moment longer."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import tiny
from lora_scripts.check import duplicates
from lora_scripts.data import seen as module
from lora_scripts.data.scan import Sample, inspect, scan
from lora_scripts.data.seen import Seen
from lora_scripts.formats import io
from lora_scripts.run.configs import load_config
from lora_scripts.run.preflight import Ready, preflight


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that were read, in files that are old enough to be known again."""
    names: list[str] = []

    def watched(path: Path, small: int) -> object:
        names.append(path.name)
        return inspect(path, small)

    monkeypatch.setattr(module, "_SETTLED", -(10**15))
    monkeypatch.setattr(module, "inspect", watched)
    return names


def found(data: Path, record: Path) -> list[Sample]:
    seen = Seen(record)
    samples = scan(data, allow_missing_captions=True, seen=seen)
    seen.save(io.write_text)
    return samples


def test_a_picture_is_read_again_only_when_it_changed(data: Path, tmp_path: Path, looked: list[str]) -> None:
    here, record = tmp_path / "pictures", tmp_path / "pictures.json"
    tiny.write_pictures(here)
    (here / "metadata.csv").unlink()
    first = found(here, record)
    assert sorted(looked) == [f"{n}.png" for n in range(5)] and first == scan(here, allow_missing_captions=True)
    looked.clear()
    assert found(here, record) == first and looked == []
    (here / "1.png").touch()  # the same bytes
    picture, other = here / "2.png", Image.open(here / "2.png").transpose(Image.Transpose.ROTATE_180)
    times, size = os.stat(picture), picture.stat().st_size
    other.save(tmp_path / "other.png")
    bytes_of_other = (tmp_path / "other.png").read_bytes()
    picture.write_bytes(bytes_of_other.ljust(size, b"\0"))  # in place, and as if nothing had happened
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    (here / "3.png").unlink()
    again = found(here, record)
    assert sorted(looked) == ["1.png", "2.png"] and len(again) == 4
    assert [s.digest == t.digest for s, t in zip(again, [*first[:3], first[4]], strict=True)] == [True] * 2 + [
        False,
        True,
    ]
    for damaged in (
        '{"pictures": {"x": 3}, "copies": []}',
        "[]",
        record.read_text().replace(" 64, 64]", " 64, 65]", 1),
    ):
        looked.clear()
        record.write_text(damaged)
        assert found(here, record) == again and len(looked) == 4


def test_what_was_written_just_now_is_not_taken_for_known(tmp_path: Path) -> None:
    tiny.write_pictures(tmp_path / "pictures")
    found(tmp_path / "pictures", tmp_path / "pictures.json")
    assert not (tmp_path / "pictures.json").exists()


def test_what_is_wrong_with_a_picture_is_told_at_every_start(data: Path, tmp_path: Path, looked: list[str]) -> None:
    record = tmp_path / "pictures.json"
    path = tmp_path / "broken.png"
    path.write_bytes((data / "0.png").read_bytes()[:-30])
    for _ in range(2):
        seen = Seen(record)
        assert isinstance(seen.look(path, 0), Exception)
        seen.save(io.write_text)
    assert looked == ["broken.png"] * 2


def test_a_second_start_begins_with_the_same_and_reads_nothing(
    base: Path, tmp_path: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is held out hangs on which pictures are copies of others: that is remembered, too."""
    tiny.write_pictures(tmp_path / "data", 9)
    (tmp_path / "data" / "metadata.csv").unlink()
    Image.open(tmp_path / "data" / "4.png").resize((80, 80)).save(tmp_path / "data" / "7.png")
    keys = {"val_split": 0.3, "allow_missing_captions": "true"}
    config = load_config(tiny.write_config(tmp_path, base_model=base, train_data_dir=tmp_path / "data", **keys))

    def start() -> Ready:
        ready = preflight(config, resume=None)
        io.make_folder(config.output_dir / "cache")
        assert ready.samples.seen is not None
        ready.samples.seen.save(io.write_text)
        return ready

    compared: list[int] = []
    find = duplicates.find
    monkeypatch.setattr(duplicates, "find", lambda facts: compared.append(len(facts)) or find(facts))
    first = start()
    assert len(looked) == 9 and compared == [9] and first.samples.held_out
    looked.clear()
    second = start()
    assert looked == [] and compared == [9]
    assert replace(first.samples, seen=None) == replace(second.samples, seen=None) and first.scanned == second.scanned
    (tmp_path / "data" / "8.png").unlink()  # another set
    third = start()
    assert compared == [9, 8] and looked == [] and "8.png" not in {s.name for s in third.scanned}
