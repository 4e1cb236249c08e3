"""Caption files: what is read, and every fault with its line."""

from __future__ import annotations

import csv
import io
import os
import random
from pathlib import Path

import pytest

from lora_scripts.data.captions import read_metadata, read_sidecar
from lora_scripts.errors import UserError


def read(tmp_path: Path, content: str | bytes, name: str = "metadata.csv") -> tuple[dict[str, str], list[UserError]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    faults: list[UserError] = []
    rows = read_metadata(path, faults)
    return {image: caption.text for image, caption in rows.items()}, faults


GOOD = {"a.png": "a cat, red", "sub/b.png": "a dog"}


@pytest.mark.parametrize(
    "content",
    [
        'filename,prompt\na.png,"a cat, red"\nsub/b.png,a dog\n',
        'file_name,text\r\na.png,"a cat, red"\r\nsub/b.png,a dog',
        'Filename, Caption\n./a.png, "a cat, red"\nsub\\b.png ,  a dog  \n',
        '\ufefffilename,prompt\n\na.png,"a cat,\n red"\n\n,\nsub/b.png,a dog\n',
        'prompt,width,filename\n"a cat, red",512,a.png\na dog,512,sub/b.png\n',
        '"filename","prompt"\r"a.png","a cat, red"\r"sub/b.png","a dog"\r',
        "filename;prompt\na.png;a cat, red\nsub/b.png; a dog\n;\n",  # spreadsheets where a comma is the decimal mark
        'sep=;\r\n"filename";"prompt"\r\n"a.png";"a cat,\r\n red"\r\nsub\\b.png;a dog\r\n',
        "\ufefffilename\tprompt\tnote\na.png\ta cat, red\t\nsub/b.png\t a dog\tx; y\n",
    ],
)
def test_csv_spellings_of_the_same_rows(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == (GOOD, [])


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_agrees_with_the_csv_module(tmp_path: Path, mark: str) -> None:
    rng = random.Random(5)
    written = {
        f"{n}.png": "x" + "".join(rng.choices("ab\",;é中\u2028'", k=rng.randrange(1, 12))) + "x" for n in range(300)
    }
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark)
    writer.writerows([("filename", "prompt"), *written.items()])
    rows, faults = read(tmp_path, out.getvalue())
    assert not faults
    assert rows == {name: " ".join(text.split()) for name, text in written.items()}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("filename,prompt\na.png,a cat, red\n", 2, 'double quotes: a.png,"a cat, red"'),
        ('filename,prompt\na.png,"a cat, red\nb.png,a dog\n', 2, "never closed"),
        ('filename,prompt\nb.png,a dog\na.png,"a cat', 3, "never closed"),
        ('filename,prompt\na.png,"a cat\nb.png,a dog"\n', 2, "never closed"),
        ('filename,prompt\na.png,"a "red" cat"\n', 2, "after the closing quote"),
        ("filename,prompt\na.png\n", 2, "1 of 2 fields"),
        ("a.png,a cat\nb.png,a dog\n", 1, "header line is missing"),
        ("filename\uff0cprompt\na.png\uff0ca cat\n", 1, "full-width commas"),
        ("filename,prompt\na.png;a cat, red\nb.png;a dog\n", 2, "by semicolons, the first line by commas; write"),
        ("filename;prompt\na.png;a cat\nb.png,a dog\n", 3, "separated by commas, the first line by semicolons"),
        ("filename;prompt\na.png;a cat; red\n", 2, 'double quotes: a.png;"a cat; red"'),
        ('filename;prompt\na.png;"a cat; red\nb.png;a dog\n', 2, "never closed"),
        ("filename;prompt;note\na.png;a cat\n", 2, "the columns are filename;prompt;note"),
        ("a.png;a cat, red\nb.png;a dog\n", 1, "header line is missing; write filename;prompt as"),
        ("name\twords\na.png\ta cat\n", 1, "write filename prompt as the first line, with a tab between"),
        ("image,prompt\na.png,a cat\n", 1, "no column for the file name"),
        ("filename,words\na.png,a cat\n", 1, "no column for the caption"),
        ("filename,prompt,text\na.png,a,b\n", 1, "more than one column"),
        ("filename,prompt\n../../x.png,a cat\n", 2, "leaves the image folder"),
        ("filename,prompt\nsub/../../x.png,a cat\n", 2, "leaves the image folder"),
        ("filename,prompt\n/etc/x.png,a cat\n", 2, "leaves the image folder"),
        ("filename,prompt\nC:\\x.png,a cat\n", 2, "leaves the image folder"),
        ("filename,prompt\na.png,a cat\nsub/../a.png,a cat\n", 3, "already, on line 2"),
        ("filename,prompt\na.png,\n", 2, "is empty"),
        ('filename,prompt\na.png,"  "\n', 2, "is empty"),
        ("filename,prompt\n,a cat\n", 2, "no file name"),
        ("filename,prompt,\na.png,a cat, red\n", 2, "a column without a name"),
        ("", 1, "file is empty"),
        ("filename,prompt\na.png,a cat\0\n", 2, "NUL"),
        ("filename,prompt\na.png,a cat\n".encode("utf-16"), 1, "UTF-16"),
        ("filename,prompt\na.png,a cat\n".encode("utf-16-le"), 1, "UTF-16"),
        ("filename,prompt\na.png,霓虹灯下的城市\n".encode("gbk"), 2, "GBK"),
        ("filename,prompt\na.png,ネオンの街\n".encode("shift_jis"), 2, "Shift-JIS"),
        ("filename,prompt\na.png,ok\nb.png,un café élégant\n".encode("cp1252"), 3, "Windows-1252"),
    ],
)
def test_csv_fault(tmp_path: Path, content: str | bytes, line: int, words: str) -> None:
    _, faults = read(tmp_path, content)
    assert [fault.line for fault in faults] == [line]
    assert words in str(faults[0])
    assert str(faults[0]).startswith(str(tmp_path / "metadata.csv"))


def test_all_csv_faults_together_and_good_rows_survive(tmp_path: Path) -> None:
    rows, faults = read(
        tmp_path, 'filename,prompt\na.png,x, y\nb.png,"z\nc.png,fine\nd.png,\n../e.png,w\nc.png,again\n'
    )
    assert [fault.line for fault in faults] == [2, 3, 5, 6, 7]
    assert rows["c.png"] == "fine"
    assert {"a.png", "b.png", "d.png"} <= set(rows)  # known by name, so that they are not reported as uncaptioned


def test_names_are_nfc(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, "filename,prompt\ncafe\u0301.png,a cup\n")
    assert list(rows) == ["caf\u00e9.png"]


def test_jsonl(tmp_path: Path) -> None:
    content = (
        '\ufeff{"file_name": "a.png", "text": "a cat, red"}\n\n'
        '{"filename": "sub/b.png", "prompt": "a\\ndog", "width": 5}\r\n{"file_name": "c.png", "caption": "\\u4e2d"}'
    )
    assert read(tmp_path, content, "metadata.jsonl") == (
        {"a.png": "a cat, red", "sub/b.png": "a dog", "c.png": "中"},
        [],
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"file_name": "b.png", "text": "a}', "Unterminated string"),
        ('["b.png", "a"]', "not a JSON object"),
        ('{"file_name": "b.png"}', "none of the keys prompt, text, caption"),
        ('{"text": "a"}', "none of the keys filename, file_name"),
        ('{"file_name": "b.png", "text": "a", "prompt": "b"}', "more than one of the keys"),
        ('{"file_name": "b.png", "text": "a", "text": "b"}', "twice"),
        ('{"file_name": "b.png", "text": ["a"]}', "not a string"),
        ('{"file_name": "b.png", "text": ""}', "is empty"),
        ('{"file_name": "b.png", "text": "\\ud83d"}', "surrogate"),
        ('{"file_name": "../b.png", "text": "a"}', "leaves the image folder"),
        ('{"file_name": "a.png", "text": "a"}', "already, on line 1"),
        ("[" * 100_000, ""),
    ],
)
def test_jsonl_fault(tmp_path: Path, row: str, words: str) -> None:
    _, faults = read(tmp_path, '{"file_name": "a.png", "text": "x"}\n' + row + "\n", "metadata.jsonl")
    assert [fault.line for fault in faults] == [2]
    assert words in str(faults[0])


def test_a_json_document_is_one_fault(tmp_path: Path) -> None:
    _, faults = read(tmp_path, '[\n{"file_name": "a.png", "text": "x"},\n{"file_name": "b.png"}\n]', "metadata.jsonl")
    assert [fault.line for fault in faults] == [1]


def test_metadata_that_is_no_table(tmp_path: Path) -> None:
    assert "csv or a .jsonl" in str(read(tmp_path, "{}", "metadata.json")[1][0])
    faults: list[UserError] = []
    read_metadata(tmp_path / "none.csv", faults)
    (tmp_path / "folder.csv").mkdir()
    read_metadata(tmp_path / "folder.csv", faults)
    assert ["no such file" in str(faults[0]), "is a folder, not a file; name a file in it" in str(faults[1])] == [
        True,
        True,
    ]


def test_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa cat,\r\n  red \n".encode())
    assert read_sidecar(path) == "a cat, red"
    path.write_bytes("霓虹灯下的城市".encode("gb18030"))
    with pytest.raises(UserError, match=r"a\.txt:1: .*GBK.*UTF-8"):
        read_sidecar(path)
    path.write_text(" \n")
    with pytest.raises(UserError, match="empty"):
        read_sidecar(path)
    assert read_sidecar(path, allow_empty=True) == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="not a regular file"):
        read_sidecar(tmp_path / "a.txt")
