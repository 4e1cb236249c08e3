"""One rule for text that people wrote, whoever reads it: UTF-8, its mark, line ends, and what is told of the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_scripts.chat.talks import read_talks
from lora_scripts.config.load import load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.captions import read_metadata, read_sidecar
from lora_scripts.data.texts.records import read_records
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.causal_lm.template import named_template
from lora_scripts.generate.prompts_file import read_prompts
from lora_scripts.run.texts.preflight import prompts_of
from lora_scripts.utf8 import DEEPEST, guess_encoding, load_json

INSIDE = "a\u2028b\x85c\x0bd"
"""Where str.splitlines() cuts, and no editor."""


def _captions(path: Path) -> list[str]:
    faults: list[UserError] = []
    rows = read_metadata(path, faults)
    raise_all(faults)
    return [caption.text for caption in rows.values()]


def _talks(path: Path) -> list[str]:
    return [talk.prompt for talk in read_talks(path)]


def _config(path: Path) -> TrainConfig:
    return TrainConfig(train_file=path, base_model=path, output_dir=path, sample_prompts=path)


READERS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "generate": ("p.txt", lambda path: [line.prompt for line in read_prompts(path)]),
    "chat": ("p.txt", _talks),
    "run": ("p.txt", lambda path: prompts_of(_config(path))),
    "csv": ("p.csv", _captions),
    "jsonl": ("p.jsonl", _captions),
    "chat.jsonl": ("p.jsonl", _talks),
}


def written(path: Path, texts: list[str], reader: str) -> str:
    """A file of the kind that a reader takes, with one text in each row."""
    if reader == "csv":
        return "\n".join(["filename,prompt", *(f"{i}.png,{text}" for i, text in enumerate(texts))])
    if reader == "jsonl":
        rows = [json.dumps({"file_name": f"{i}.png", "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
        return "\n".join(rows)
    if reader == "chat.jsonl":
        return "\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)
    return "\n".join(texts)


@pytest.mark.parametrize("reader", READERS)
def test_a_mark_and_every_line_end_are_read_over_and_nothing_else_ends_a_line(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path, texts = tmp_path / name, ["Hello", INSIDE, "and 霓虹", "end"]
    told = texts if reader not in ("csv", "jsonl") else [" ".join(text.split()) for text in texts]  # on one line
    for end in ("\n", "\r\n", "\r"):
        for mark in ("", "\ufeff"):
            path.write_bytes((mark + written(path, texts, reader).replace("\n", end)).encode())
            assert read(path) == told, (end, mark)


@pytest.mark.parametrize("reader", [*READERS, "sidecar", "config", "records", "jinja"])
def test_another_encoding_is_told_with_file_and_line(reader: str, tmp_path: Path) -> None:
    more: dict[str, tuple[str, Callable[[Path], object]]] = {
        "sidecar": ("p.txt", read_sidecar),
        "config": ("p.yaml", load_config),
        "records": ("p.txt", read_records),
        "jinja": ("p.jinja", lambda path: named_template(str(path), None)),
    }
    name, read = (READERS | more)[reader]
    path, text = tmp_path / name, written(tmp_path, ["one", "two", "霓虹灯"], reader)
    line = text.count("\n") + 1
    for encoding, wanted in (("gbk", f"{path}:{line}: not UTF-8 text; it looks like GBK"), ("utf-16", f"{path}:1: ")):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value).startswith(wanted) and str(caught.value).partition("; save it as UTF-8")[1]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("Leber: größer als früher", "cp1252", "Windows-1252"),
        ("für", "cp1252", "Windows-1252"),
        ("señor", "cp1252", "Windows-1252"),
        ("déjà vu – “été”", "cp1252", "Windows-1252"),
        ("“oui” – non…", "cp1252", "Windows-1252"),
        ("«\xa0rêve\xa0» à 20\xa0°C, 512×512", "cp1252", "Windows-1252"),
        ("ÄRZTE – snö över ån", "cp1252", "Windows-1252"),
        ("the cat’s hat—“blue”", "cp1252", "Windows-1252"),
        ("łąka, źródło, długie włosy", "cp1250", "an encoding that is not known"),
        ("鮮花, 單人, 長髮", "gbk", "GBK (Chinese)"),
        ("看著鏡頭, 龍", "gbk", "GBK (Chinese)"),
        ("рисунок, девушка с зонтом", "cp1251", "an encoding that is not known"),
        ("一", "gbk", "GBK (Chinese)"),
        ("20板 20板", "gbk", "GBK (Chinese) or EUC-JP (Japanese) or EUC-KR (Korean) or Big5 (Chinese)"),
        ("CT报告, 双肺未见异常, 心影不大", "gbk", "GBK (Chinese)"),
        ("貓, 狗, 天空", "big5", "Big5 (Chinese)"),
        ("ネコ, イヌ", "shift_jis", "Shift-JIS"),
        ("파란 하늘 아래 빨간 자동차, 밤의 도시", "cp949", "EUC-KR"),
        ("夜里的城市，霓虹灯，下着雨", "gbk", "GBK (Chinese)"),
        ("夜の街、ネオン", "euc_jp", "EUC-JP (Japanese)"),
        ("黒髪, 制服, 笑顔", "euc_jp", "GBK (Chinese) or EUC-JP (Japanese)"),
        ("소녀", "cp949", "GBK (Chinese) or EUC-JP (Japanese) or EUC-KR (Korean) or Big5 (Chinese)"),
    ],
)
def test_encodings_are_told_apart(text: str, encoding: str, name: str) -> None:
    """Of a few signs every one that it may be is told: 소녀 in Korean is 家崇 in Chinese."""
    told = guess_encoding(text.encode(encoding))
    assert told.startswith(name) and (" or " in told) == (" or " in name)


@pytest.mark.skipif(os.name == "nt", reason="pipes as files of POSIX")
@pytest.mark.parametrize("reader", ["generate", "chat"])
def test_prompts_may_come_from_another_program(reader: str) -> None:
    """As from a shell's <(…), or /dev/stdin."""
    out, into = os.pipe()
    os.write(into, b"a house\n")
    os.close(into)
    assert READERS[reader][1](Path(f"/dev/fd/{out}")) == ["a house"]
    os.close(out)


def test_a_config_with_a_line_end_that_only_yaml_1_1_knows_is_told(tmp_path: Path) -> None:
    """PyYAML would read epochs out of the comment."""
    path = tmp_path / "c.yaml"
    path.write_text("base_model: b\n# mine\u2028epochs: 3\n", "utf-8")
    with pytest.raises(UserError, match=r"c\.yaml:2: holds the character U\+2028.*; remove it$"):
        load_config(path)


def test_a_mark_is_no_part_of_a_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("\ufeff{{ messages[0].content }}", "utf-8")
    assert named_template(str(path), None).source == "{{ messages[0].content }}"


def test_json_is_read_as_deep_as_is_said() -> None:
    assert load_json("[" * DEEPEST + "]" * DEEPEST)
    for text in ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "[" * 10**6, '{"a": ' * 10**5, "1" * 5000):
        with pytest.raises(ValueError, match=r"nested too deeply|thousands of digits"):
            load_json(text)
