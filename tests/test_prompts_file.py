"""Files of prompts: what a line says, and every fault with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts.errors import UserError
from lora_scripts.generate.prompts_file import PromptLine, parse_line, read_prompts


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a house", PromptLine("a house")),
        ("  a house \t", PromptLine("a house")),
        ("a house --n ugly, a tree", PromptLine("a house", negative="ugly, a tree")),
        (
            "a (red:1.2) house <lora:a:0.8> --n ugly --w 512 --h 768 --d 42 --l 7.5 --s 20",
            PromptLine("a (red:1.2) house <lora:a:0.8>", "ugly", 512, 768, 42, 7.5, 20),
        ),
        ("a house --s 20 --n ugly", PromptLine("a house", negative="ugly", steps=20)),
        ("a house --d=7 --l=0", PromptLine("a house", seed=7, cfg=0.0)),
        ("a house --n", PromptLine("a house", negative="")),
        ("a well-lit house -- at night, semi--open", PromptLine("a well-lit house -- at night, semi--open")),
        ("一座房子 --n 树", PromptLine("一座房子", negative="树")),
    ],
)
def test_a_line_says(text: str, line: PromptLine) -> None:
    assert parse_line(text) == line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--n ugly", "there is no prompt; write it before the --"),
        ("a --x 3", "unknown option --x; the options are --n negative --w width"),
        ("a --W 512", "unknown option --W"),
        ("a --width 512", "unknown option --width"),
        ("a --w 100", "--w must be multiples of 8 from 64 to 2048 pixels; the nearest to 100 is 96"),
        ("a --w 5x", "--w must be a whole number"),
        ("a --d -1", "--d must be a whole number from 0 to 4294967295, not '-1'"),
        ("a --s 0", "--s must be a whole number from 1 to 1000, not '0'"),
        ("a --s", "--s must be a whole number from 1 to 1000, not ''"),
        ("a --l nan", "--l must be a number from 0 to 100, not 'nan'"),
        ("a --l 7 --l 8", "--l is given twice"),
    ],
)
def test_a_fault_is_told(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_line(text, Path("p.txt"), 3)
    assert str(caught.value).startswith(f"p.txt:3: {told}")


def test_a_file_leaves_out_comments_and_tells_all_faults(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# mine\r\na house\r\n\r\n  # and\r\na tree --d 5\r\n".encode())
    assert read_prompts(path) == [PromptLine("a house"), PromptLine("a tree", seed=5)]
    path.write_text("a --s x --w 3\n# fine\nb\nc --q 1\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{path}:1", f"{path}:1", f"{path}:4"]
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"a\nb\xff\n")
    with pytest.raises(UserError, match=r"prompts.txt:2: not UTF-8 text"):
        read_prompts(path)
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
