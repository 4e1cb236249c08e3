"""`--fix`: what it moves and rewrites, that it loses nothing, wherever it is killed, and that it ends."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts.check import fix
from lora_scripts.check.command import CheckOptions, check_data
from lora_scripts.data.listing import list_data
from lora_scripts.data.rewrite import rewritten
from lora_scripts.data.scan import scan
from lora_scripts.errors import UserError
from lora_scripts.formats import io

SURPLUS = ["b.png", "sub/d.png"]


def draw(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a = b and c = d in pixels; captions in a table with a third column, and in sidecars."""
    data = tmp_path / "cats"
    for name, colour in (
        ("a.png", "red"),
        ("b.png", "red"),
        ("c.png", "blue"),
        ("sub/d.png", "blue"),
        ("e.png", "tan"),
    ):
        draw(data / name, colour)
    table = 'filename,author,prompt\r\na.png,"Li, Wei","neon lights, a cat,\r\nneon lights"\r\n'
    table += 'b.png,,"a cat"\r\nc.png,"Zoë ""Z""","neonlights, rain"\r\n\r\n'
    (data / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    (data / "sub/d.txt").write_text("neon lights, a dog")
    (data / "e.caption").write_text("neon lights,\n  sand")
    return data


def contents(*folders: Path) -> dict[str, int]:
    """Digest -> how often, of every file in the folders: what must never get less."""
    found: dict[str, int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[digest] = found.get(digest, 0) + 1
    return found


def side(folder: Path) -> Path:
    return folder.with_name("cats-set-aside")


def mend(folder: Path, surplus: list[str] = SURPLUS) -> list[str]:
    listing = list_data(folder, allow_missing_captions=True)
    return fix.apply(fix.plan(folder, listing, [name for name in surplus if name in listing.images]), folder)


def test_it_sets_aside_and_corrects(folder: Path) -> None:
    before = (folder / "metadata.csv").read_bytes()
    pictures = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    told = mend(folder)
    assert {s.name: s.caption for s in scan(folder)} == {
        "a.png": "neon lights, a cat",
        "c.png": "neon lights, rain",
        "e.png": "neon lights, sand",
    }
    assert (folder / "metadata.csv").read_bytes() == (
        b"\xef\xbb\xbf"
        + 'filename,author,prompt\r\na.png,"Li, Wei","neon lights, a cat"\r\n'
        'c.png,"Zoë ""Z""","neon lights, rain"\r\n\r\n'.encode()
    )
    assert (folder / "metadata.csv.bak-1").read_bytes() == before
    assert (folder / "e.caption").read_text() == "neon lights,\n  sand"  # read as one line, so there is nothing to mend
    aside = sorted(path.relative_to(side(folder)).as_posix() for path in side(folder).rglob("*") if path.is_file())
    assert aside == ["b.png", "captions.csv", "sub/d.png", "sub/d.txt"]
    assert {path.name: path.read_bytes() for root in (folder, side(folder)) for path in root.rglob("*.png")} == pictures
    found = {s.name: s.caption for s in scan(side(folder), side(folder) / "captions.csv")}
    assert found == {"b.png": "a cat", "sub/d.png": "neon lights, a dog"}
    assert any("metadata.csv.bak-1" in line for line in told) and any(line.startswith("to undo") for line in told)


def test_undoing(folder: Path) -> None:
    before = contents(folder)
    mend(folder)
    shutil.move(folder / "metadata.csv.bak-1", folder / "metadata.csv")
    for name in ("b.png", "sub/d.png", "sub/d.txt"):
        shutil.move(side(folder) / name, folder / name)
    assert contents(folder) == before


def test_again_it_does_nothing(folder: Path) -> None:
    mend(folder)
    before = contents(folder, side(folder))
    assert mend(folder) == []
    assert contents(folder, side(folder)) == before


class Killed(BaseException):
    """As if the process ended here."""


def killed(folder: Path, after: int, patch: pytest.MonkeyPatch) -> bool:
    """Mends, and stops before write or move number `after`; whether it came so far."""
    left = after

    def counting(act: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            act(*arguments)

        return counted

    with patch.context() as patched:
        for name in ("write_atomic", "move"):
            patched.setattr(fix.io, name, counting(getattr(io, name)))
        try:
            mend(folder)
        except Killed:
            return True
    return False


def test_killed_anywhere_it_loses_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole/cats"
    shutil.copytree(folder, whole)
    mend(whole)
    wanted = {s.name: s.caption for s in scan(whole)}
    before, step = contents(folder), 0
    while True:
        here = tmp_path / f"{step}/cats"
        shutil.copytree(folder, here)
        stopped = killed(here, step, monkeypatch)
        after = contents(*(path for path in (here, side(here)) if path.exists()))
        assert before.keys() <= after.keys() and all(after[digest] >= 1 for digest in before)
        assert len(list(here.parent.rglob("*.png"))) == 5
        mend(here)
        assert {s.name: s.caption for s in scan(here)} == wanted, step
        captions = scan(side(here), side(here) / "captions.csv")
        assert {s.name: s.caption for s in captions} == {"b.png": "a cat", "sub/d.png": "neon lights, a dog"}
        assert mend(here) == []
        if not stopped:
            break
        step += 1
    assert step == 6  # the list, the backup, the table, two pictures, a sidecar


def test_a_shared_sidecar_stays(tmp_path: Path) -> None:
    data = tmp_path / "cats"
    draw(data / "a.png", "red")
    Image.open(data / "a.png").save(data / "a.bmp")
    (data / "a.txt").write_text("a cat")
    mend(data, ["a.bmp"])
    assert [(s.name, s.caption) for s in scan(data)] == [("a.png", "a cat")]
    assert sorted(p.name for p in side(data).iterdir()) == ["a.bmp", "captions.csv"]


def test_nothing_in_the_side_folder_is_replaced(tmp_path: Path) -> None:
    data = tmp_path / "cats"
    for colour in ("red", "blue"):
        draw(data / "a.png", colour)
        draw(data / "b.png", colour)
        (data / "a.txt").write_text(f"{colour} thing")
        (data / "b.txt").write_text(f"{colour} cat")
        mend(data, ["b.png"])
    assert {s.name: s.caption for s in scan(side(data))} == {"b.png": "red cat", "b-2.png": "blue cat"}


@pytest.mark.parametrize(
    ("encoding", "name"), [("gbk", "GBK (Chinese)"), ("utf-16", "UTF-16"), ("big5", "Big5 (Chinese)")]
)
def test_captions_of_another_encoding_become_utf8(tmp_path: Path, encoding: str, name: str) -> None:
    """As Excel and the editors of Windows save them. One that is no text in it stays, and so does what is UTF-8."""
    said = {"a": "一隻黑貓坐在屋頂上，夜裡的城市", "b": "藍色的天空，海邊的房子"}
    for stem, text in said.items():
        draw(tmp_path / "d" / f"{stem}.png", "red" if stem == "a" else "blue")
        (tmp_path / "d" / f"{stem}.txt").write_bytes(f"{text}\r\n".encode(encoding))
    draw(tmp_path / "d" / "c.png", "tan")
    (tmp_path / "d" / "c.txt").write_text("沙漠", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in (tmp_path / "d").glob("*.txt")}
    options = CheckOptions(tmp_path / "d", None, (64, 64), False, [str(tmp_path / "d")], None)
    assert check_data(options).mend.endswith("--fix")
    checked = check_data(replace(options, fix=True))
    assert not checked.errors
    assert checked.mended is not None
    assert checked.mended[0].startswith(f"2 caption files were {name}, and UTF-8 now; as before: a.txt.bak-1")
    assert {s.name: s.caption for s in scan(tmp_path / "d")} == {
        "a.png": said["a"],
        "b.png": said["b"],
        "c.png": "沙漠",
    }
    assert (tmp_path / "d" / "b.txt").read_bytes() == f"{said['b']}\r\n".encode()
    assert {name: (tmp_path / "d" / f"{name}.bak-1").read_bytes() for name in ("a.txt", "b.txt")} == {
        name: before[name] for name in ("a.txt", "b.txt")
    }
    assert (tmp_path / "d" / "c.txt").read_bytes() == before["c.txt"]
    assert check_data(replace(options, fix=True)).mended == ()


def test_captions_in_utf16_and_in_another_encoding_become_utf8_together(tmp_path: Path) -> None:
    said = {"a": ("一个女孩站在雨中", "utf-16"), "b": ("拿着红色的伞，夜里", "gbk"), "c": ("夜里的城市", "utf-16")}
    for stem, (text, encoding) in said.items():
        draw(tmp_path / f"{stem}.png", "red")
        (tmp_path / f"{stem}.txt").write_bytes(text.encode(encoding))
    others = fix.foreign(list_data(tmp_path, allow_missing_captions=True))
    assert others.encoding == "UTF-16 and GBK (Chinese)"
    assert {path.stem: text for path, text in others.texts.items()} == {stem: text for stem, (text, _) in said.items()}


def test_captions_of_two_programs_are_each_read_as_theirs(tmp_path: Path) -> None:
    """A few signs that may be either are left and told, where wrong signs would have been written. In a set of one
    encoding they are what the others are."""
    said = {
        "a": ("一个女孩站在雨中，夜里的城市", "gbk"),
        "b": ("赤い傘を持つ少女、夜の街", "shift_jis"),
        "c": ("青空, 制服", "euc_jp"),
    }
    for stem, (text, encoding) in said.items():
        draw(tmp_path / f"{stem}.png", "red")
        (tmp_path / f"{stem}.txt").write_bytes(text.encode(encoding))
    others = fix.foreign(listing := list_data(tmp_path, allow_missing_captions=True))
    assert others.encoding == "GBK (Chinese) and Shift-JIS (Japanese)"
    assert {path.stem: text for path, text in others.texts.items()} == {stem: said[stem][0] for stem in "ab"}
    mends = {Path(fault.file or "").stem: (str(fault), fault.hint) for fault in listing.faults}
    assert "GBK (Chinese) or EUC-JP (Japanese)" in mends["c"][0] and mends["c"][1] == "save it as UTF-8"
    for stem in "ab":
        (tmp_path / f"{stem}.txt").write_bytes("夜の街、ネオン、雨に濡れた道".encode("euc_jp"))
    others = fix.foreign(list_data(tmp_path, allow_missing_captions=True))
    assert others.encoding == "EUC-JP (Japanese)" and others.texts[tmp_path / "c.txt"] == said["c"][0]


@pytest.mark.parametrize(("text", "encoding"), [("девушка с зонтом, дождь", "cp1251"), ("a red umbrella", "utf-16-le")])
def test_captions_in_an_encoding_that_is_not_known_are_left_and_told_so(
    tmp_path: Path, text: str, encoding: str
) -> None:
    draw(tmp_path / "a.png", "red")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    listing = list_data(tmp_path, allow_missing_captions=True)
    assert not fix.foreign(listing)
    assert [fault.hint for fault in listing.faults] == ["save it as UTF-8"]


def test_a_caption_file_that_cannot_be_opened_stops_no_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stem in ("a", "b"):
        draw(tmp_path / f"{stem}.png", "red")
        (tmp_path / f"{stem}.txt").write_bytes("一只猫坐在屋顶上".encode("gbk"))

    def locked(path: Path) -> bytes:
        if path.name == "a.txt":
            raise UserError("cannot be read: Permission denied", file=path)
        return path.read_bytes()

    listing = list_data(tmp_path, allow_missing_captions=True)
    monkeypatch.setattr(fix, "read_bytes", locked)
    assert fix.foreign(listing).texts == {tmp_path / "b.txt": "一只猫坐在屋顶上"}


def test_what_is_no_text_in_any_encoding_is_left(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "red")
    (tmp_path / "a.txt").write_bytes(b"\x00\xff\x81\x00")
    assert not fix.foreign(list_data(tmp_path, allow_missing_captions=True))


def test_links_and_broken_rows_are_left(tmp_path: Path) -> None:
    data = tmp_path / "cats"
    original = draw(tmp_path / "real.png", "red")
    draw(data / "a.png", "red")
    (data / "b.png").symlink_to(original)
    text = 'filename,prompt\na.png,a cat, red\nb.png,"rain, rain"\n'
    (data / "metadata.csv").write_text(text)
    told = mend(data, ["b.png"])
    assert (data / "b.png").is_symlink() and not side(data).exists()
    assert (data / "metadata.csv").read_text() == "filename,prompt\na.png,a cat, red\nb.png,rain\n"
    assert any("b.png is a link" in line for line in told)


def test_the_torn_row_of_a_duplicate_goes_with_it(tmp_path: Path) -> None:
    """Its row stayed, of a picture that was no longer there. What it says is kept with the others'."""
    data = tmp_path / "cats"
    for name in ("a", "b", "c"):
        draw(data / f"{name}.png", "red")
    text = 'filename,prompt\na.png,a cat\nb.png,a cat, “red”, “big”\nc.png,"a cat\n'
    (data / "metadata.csv").write_text(text, encoding="utf-8")
    mend(data, ["b.png"])
    assert (data / "metadata.csv").read_text() == 'filename,prompt\na.png,a cat\nc.png,"a cat\n'
    assert {s.name: s.caption for s in scan(side(data), side(data) / "captions.csv")} == {
        "b.png": "a cat, “red”, “big”"
    }
    mend(data, ["c.png"])  # where a quote is never closed there is no telling what belongs to the row
    assert (data / "metadata.csv").read_text() == 'filename,prompt\na.png,a cat\nc.png,"a cat\n'


def test_jsonl(tmp_path: Path) -> None:
    rows = ['{"file_name": "a.png", "text": "霓虹, rain", "n": 1}', "", '{"file_name": "b.png", "caption": "x"}']
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    assert rewritten(path, {}) == path.read_bytes()
    path.write_bytes(rewritten(path, {1: "雨\u2028", 3: None}))
    assert json.loads(path.read_text(encoding="utf-8")) == {"file_name": "a.png", "text": "雨\u2028", "n": 1}


def test_the_side_folder_lies_beside() -> None:
    assert fix.beside(Path("data/cats"), "-x") == Path("data/cats-x")
    assert fix.beside(Path("data/cats/"), "-x") == Path("data/cats-x")
    assert fix.beside(Path(), "-x") == Path.cwd().with_name(Path.cwd().name + "-x")


def test_clusters_that_touch_are_one() -> None:
    assert fix.merged([("a", "b"), ("d", "c"), ("b", "e")]) == [["a", "b", "e"], ["c", "d"]]


def test_moving(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "new/b"
    source.write_text("x")
    io.move(source, target)
    assert target.read_text() == "x" and not source.exists()
    source.write_text("x")
    io.move(source, target)  # as after a kill between copy and removal
    assert target.read_text() == "x" and not source.exists()
    source.write_text("y")
    with pytest.raises(Exception, match="another file of this name"):
        io.move(source, target)
    assert (source.read_text(), target.read_text()) == ("y", "x")
    io.move(target, target)
    assert target.read_text() == "x"
