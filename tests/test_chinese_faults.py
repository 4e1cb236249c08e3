"""Faults of pictures and caption files in Chinese, as the check page shows them: made by real files, and all of them as
they stand in the code."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts.check.command import _source_faults
from lora_scripts.check.facts import measure
from lora_scripts.check.pictures import picture_findings
from lora_scripts.data.buckets import bucket_sizes
from lora_scripts.data.listing import list_data
from lora_scripts.report import check_page, chinese
from written import written

ROOM = Path(chinese.__file__).parents[1]
HEAD = "filename,prompt\n"
EXAMPLE = '{"file_name": "a.png", "text": "a cat"}'
METADATA = {
    "too many fields": f"{HEAD}a.png,a cat, red\n",
    "several of them": f"{HEAD}a.png,a cat, red\nb.png,a, b\n",
    "many of them": HEAD + "".join(f"{n}.png,a cat, red\n" for n in "abcdef"),
    "a nameless column": "filename,prompt,\na.png,a cat, red\n",
    "too few fields": "filename,prompt,note\na.png,a cat\n",
    "an open quote": f'{HEAD}a.png,"a cat\nb.png,a dog\n',
    "text behind a quote": f'{HEAD}a.png,"a "cat" sits"\n',
    "semicolons": "filename;prompt\na.png;a; cat\nb.png;a; b\nc.png;x\ty\n",
    "another mark than the first line": f"{HEAD}a.png;a cat\n",
    "another mark in one row": f"{HEAD}a.png,a cat\nb.png\ta dog\n",
    "full-width commas": "filename\uff0cprompt\na.png\uff0ca cat\n",
    "no header": "a.png,a cat\nb.png,a dog\n",
    "no header, between tabs": "a.png\ta cat\n",
    "other columns": "name,words\nx,a cat\n",
    "two columns": "filename,prompt,text\na.png,a cat,a cat\n",
    "nothing": "",
    "no name": f"{HEAD},a cat\n",
    "twice": f"{HEAD}a.png,a cat\na.png,a dog\n",
    "outside": f"{HEAD}../a.png,a cat\n",
    "a folder": f"{HEAD}.,a cat\n",
    "nearly the name": f"{HEAD}A.PNG,a cat\na.png,a dog\n",
    "another kind": f"{HEAD}x.gif,a cat\na.png,a dog\n",
    "no picture": f"{HEAD}ship.png,a cat\na.png,a dog\n",
    "no picture at all": f"{HEAD}one.png,a cat\ntwo.png,a dog\n",
    "many without": HEAD + "a.png,a cat\n" + "".join(f"{n}{n}.png,a cat\n" for n in range(30)),
    "two sources": f"{HEAD}b.png,a dog\n",
    "UTF-16": "filename,prompt\n".encode("utf-16"),
    "GBK": f"{HEAD}a.png,红色的房子在沙滩上\n".encode("gbk"),
    "NUL": b"filename,prompt\na.png,a\0cat\n",
}
RECORDS = {
    "no value": '{"file_name": }',
    "no comma": '{"file_name": "a.png" "text": "a cat"}',
    "no colon": '{"file_name" "a.png"}',
    "no quotes": "{file_name: 1}",
    "more": f"{EXAMPLE} {EXAMPLE}",
    "open": '{"file_name": "a.png", "text": "a cat',
    "no object": "[1]",
    "a key twice": '{"file_name": "a.png", "file_name": "a.png", "text": "a"}',
    "no key": '{"file_name": "a.png"}',
    "two keys": '{"file_name": "a.png", "text": "a", "prompt": "a"}',
    "no text": '{"file_name": "a.png", "text": 7}',
    "half a letter": '{"file_name": "a.png", "text": "\\ud800"}',
    "nothing": "",
}
PICTURES = {
    "empty": b"",
    "text": b"hello there",
    "LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "a page": b"<!doctype html><p>no",
    "HEIC": b"\0\0\0\x18ftypheic",
    "zeros": b"\x89PNG\r\n\x1a\n" + bytes(900),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        Image.new("RGB", (64, 64), (200, 90, 30)).save(tmp_path / f"{name}.png")
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(pytest.param("metadata.csv", told, id=what) for what, told in METADATA.items()),
        *(pytest.param("metadata.jsonl", told, id=f"json, {what}") for what, told in RECORDS.items()),
        *(pytest.param("b.txt", told, id=told) for told in ("version https://git-lfs x", "<html><p>no")),
    ],
)
def test_what_a_caption_file_does_wrong_is_told_in_chinese(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if content == METADATA["two sources"]:
        (folder / "b.txt").write_text("a fox")
    findings = _source_faults(folder, list_data(folder, allow_missing_captions=True))
    assert findings and "caption_file" in {finding.kind for finding in findings}
    assert english(findings) == []


@pytest.mark.parametrize("content", PICTURES.values(), ids=PICTURES)
def test_what_a_picture_does_wrong_is_told_in_chinese(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    findings = picture_findings([measure("a.png", tmp_path / "a.png")], bucket_sizes((512, 512)))
    assert [finding.kind for finding in findings] == ["corrupt"] and english(findings) == []


def english(findings: list[check_page.Finding]) -> list[str]:
    """What a browser in Chinese shows in English, besides what a person wrote."""
    html = check_page.render(check_page.CheckData("d", "nothing wrong was found", [], findings))
    found = json.loads(re.findall(r'id="zh">(.*?)</script>', html, re.DOTALL)[0])
    own = re.compile(r"“.*?”|：.*|运行 .*|/\S+|filename,prompt(,\w+)*|[\w.]+\.(csv|jsonl|txt|png)", re.DOTALL)
    some = re.compile(r"\b(the|of|is|in|a|more|one|and)\b")
    return chinese.missing(html) + [text for text, words in found.items() if some.search(own.sub("", words))]


RAISED = {"captions.py", "references.py", "csv_rows.py", "unquoted.py", "scan.py", "image.py"}
NEVER_HERE = re.compile(
    "^(no captions found|write metadata.csv with|.* further images have|add one, |no images |train_data_dir"
    "|no such folder|is not a folder|the folder is empty|has changed since|start again|two captions: 7)"
)
"""Of what stops before there is a page, is a finding of its own on it, or is put together elsewhere."""


@pytest.mark.parametrize("module", sorted(RAISED))
def test_no_fault_of_the_code_is_without_chinese(module: str) -> None:
    """Each text that becomes a fault or its mend, with a word where a value goes."""
    texts: list[str] = []
    for node in ast.walk(ast.parse((ROOM / "data" / module).read_text("utf-8"))):
        named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("message", "hint", "example")
        if named or isinstance(node, ast.Return):
            texts += written(node.value)  # type: ignore[attr-defined]
        elif isinstance(node, ast.Call) and re.search(r"\b(UserError|ValueError|fault)$", ast.unparse(node.func)):
            texts += [text for value in [*node.args, *(k.value for k in node.keywords)] for text in written(value)]
    texts = [text.replace("\0", "7") for text in texts]
    told = [text for text in texts if " " in text.strip(" ,7") and not NEVER_HERE.match(text)]
    assert len(told) >= 2
    assert [text for text in told if not any(map(chinese.translated, (text, text.replace("7", "none", 1))))] == []
