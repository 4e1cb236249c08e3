"""Metadata files that are changed: what is not touched stays, and the reader reads what was written."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest

from lora_scripts.data.captions import read_metadata
from lora_scripts.data.write_captions import CaptionTable, check_name
from lora_scripts.errors import UserError, UserErrors


def table(tmp_path: Path, content: str | bytes, name: str = "metadata.csv") -> CaptionTable:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return CaptionTable(tmp_path / name)


def test_a_new_csv_is_read_alike_by_the_reader_and_by_the_csv_module(tmp_path: Path) -> None:
    rng = random.Random(3)
    written = {f"sub/{n},é.png": "x" + "".join(rng.choices("ab\",;'é中\u2028# ", k=9)) + "x" for n in range(200)}
    new = CaptionTable(tmp_path / "metadata.csv")
    for name, text in written.items():
        new.set(name, text)
    content = new.content()
    assert content.splitlines()[0] == "filename,prompt"
    wanted = {name: " ".join(text.split()) for name, text in written.items()}
    rows = list(csv.reader(io.StringIO(content, newline="")))
    assert {name: text for name, text in rows[1:]} == wanted
    (tmp_path / "metadata.csv").write_text(content, encoding="utf-8", newline="")
    faults: list[UserError] = []
    read = read_metadata(tmp_path / "metadata.csv", faults)
    assert {name: caption.text for name, caption in read.items()} == wanted and not faults


def test_csv_rows_of_a_person_stay_byte_for_byte(tmp_path: Path) -> None:
    before = (
        '\ufeff"Prompt", width ,file_name,note\r\n"a cat,  red" , 512,a.png,"mine, all mine"\r\n\r\n'
        ',640, sub\\b.png ,\r\n"two\r\nlines",1,c.png,x\r\n,,,\r\nlast,2,d.png,y'
    )
    here = table(tmp_path, before)
    assert here.captions == {"a.png": "a cat, red", "sub/b.png": "", "c.png": "two lines", "d.png": "last"}
    assert here.content() == before
    here.set("sub/b.png", 'a "dog", big')
    here.set("e.png", "new")
    wanted = before.replace(",640, sub\\b.png ,\r\n", '"a ""dog"", big",640,sub\\b.png,\r\n') + "\r\nnew,,e.png,\r\n"
    assert here.content() == wanted
    here.set("c.png", "one line")
    assert "\r\none line,1,c.png,x\r\n,,,\r\n" in here.content()


def test_csv_rows_between_semicolons_or_tabs_stay_so(tmp_path: Path) -> None:
    for mark in ";\t":
        before = f"sep={mark}\r\nfilename{mark}prompt\r\na.png{mark}a cat, red\r\nb.png{mark}\r\n"
        here = table(tmp_path, before)
        assert here.captions == {"a.png": "a cat, red", "b.png": ""} and here.content() == before
        here.set("b.png", f"a{mark.strip() or ','} dog")
        here.set("c.png", "new, too")
        quoted = '"a; dog"' if mark == ";" else "a, dog"
        assert here.content() == before.replace(f"b.png{mark}", f"b.png{mark}{quoted}") + f"c.png{mark}new, too\r\n"


def test_jsonl_rows_of_a_person_stay_byte_for_byte(tmp_path: Path) -> None:
    before = (
        '\ufeff{"width": 5,  "caption" : "a \\u4e2d", "filename": "a.png", "tags": ["caption", {"caption": "x"}]}\n\n'
        '{"filename":"b.png","caption":""}'
    )
    here = table(tmp_path, before, "metadata.jsonl")
    assert here.captions == {"a.png": "a 中", "b.png": ""} and here.content() == before
    here.set("a.png", 'a "dog" 中')
    here.set("b.png", "x")
    here.set("c.png", "y")
    first, rest = before.split("\n", 1)
    assert here.content() == (
        first.replace('"a \\u4e2d"', '"a \\"dog\\" 中"')
        + "\n"
        + rest.replace('""', '"x"')
        + '\n{"filename": "c.png", "caption": "y"}\n'
    )
    new = CaptionTable(tmp_path / "new.jsonl")
    new.set("a.png", "x, y")
    assert json.loads(new.content()) == {"file_name": "a.png", "text": "x, y"}


def test_a_faulty_file_is_not_taken_up(tmp_path: Path) -> None:
    with pytest.raises(
        UserErrors, match=r"metadata\.csv:2: too many fields[^\0]*metadata\.csv:3: \"b\.png\" has|already"
    ):
        table(tmp_path, "filename,prompt\na.png,a cat, red\nb.png,x\nb.png,y\n")
    with pytest.raises(UserError, match="UTF-16"):
        table(tmp_path, "filename,prompt\na.png,x\n".encode("utf-16"))


@pytest.mark.parametrize(("name", "content"), [("m.csv", ""), ("m.csv", "filename,prompt"), ("m.jsonl", "\n")])
def test_an_empty_file_gets_rows(tmp_path: Path, name: str, content: str) -> None:
    here = table(tmp_path, content, name)
    here.set("a.png", "x")
    (tmp_path / name).write_text(here.content(), encoding="utf-8")
    assert CaptionTable(tmp_path / name).captions == {"a.png": "x"}


@pytest.mark.parametrize("name", [" a.png", "a\nb.png", "a\\b.png", "c:b.png"])
def test_names_that_no_row_can_hold(name: str) -> None:
    check_name("sub/a, b.png")
    with pytest.raises(ValueError, match="cannot hold"):
        check_name(name)
