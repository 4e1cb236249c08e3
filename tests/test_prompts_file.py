"""Files of prompts: what a line says, and every fault with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Note
from lora_scripts.families import table
from lora_scripts.families.facts import Drawing
from lora_scripts.generate.prompts_file import PromptLine, parse_line, read_prompts
from lora_scripts.generate.unread import tell_unread
from lora_scripts.grid.cells import load_painter
from lora_scripts.grid.sources import GridOptions, find_sources
from lora_scripts.run.configs import load_config
from lora_scripts.run.preflight import tell_idle


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


def test_a_line_names_references(tmp_path: Path) -> None:
    """As often as there are any, and by the words of musubi-tuner and ai-toolkit, too; it is written as it is read."""
    one, two = (tmp_path / name for name in ("a b.png", "二.png"))
    for path in (one, two):
        path.touch()
    line = PromptLine("make it night", steps=4, references=(one, two))
    assert parse_line(f"make it night --ci {one} --s 4 --ctrl_img {two}") == line
    assert parse_line(line.text) == line
    for name, mark in (("c --y.png", '"'), ("it's --w 64.png", '"'), ('"d" --n', "'")):  # quotes, as a shell reads them
        path = tmp_path / name
        path.touch()
        for join in (" ", "=", "   "):
            line = parse_line(f'a cat\'s "hat" --s 4 --ref{join}{mark}{path}{mark} --ref {one} --w 64')
            assert line == PromptLine('a cat\'s "hat"', steps=4, width=64, references=(path, one))
        assert parse_line(line.text) == line
    with pytest.raises(UserError, match=r"--ref \"a: no such picture"):  # open ones are part of the name
        parse_line('a --ref "a --w 64')
    with pytest.raises(UserError, match=r"--ref gone\.png: no such picture"):
        parse_line("make it night --ref gone.png")


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
    with pytest.raises(UserError, match="no such file; write the prompts into a text file"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("一座（红：1.2）房子", "（红：1.2）"),
        ("a （red:1.2) house", "（red:1.2)"),
        ("a (red： .8 ) house", "(red： .8 )"),
        ("a (red:1.2) house （注：二）， （very red）", ""),
    ],
)
def test_weights_in_the_signs_of_an_input_method_are_told(prompt: str, told: str) -> None:
    """Of a base that reads weights; to others the signs are words, whichever they are."""
    for family, wanted in (("sd1", told), ("flux1", "")):
        for pair in ((prompt, Drawing()), ("a house", Drawing(negative=prompt))):
            notes: list[Event] = []
            tell_unread(table.by_name(family), [pair], notes.append)
            texts = [note.text for note in notes if isinstance(note, Note)]
            assert [text.partition(" is read as words")[0] for text in texts] == ([f"note: {wanted}"] if wanted else [])
            assert not wanted or texts[0].split(": ")[-1] in ("(红:1.2)", "(red:1.2)", "(red:.8)")


def test_what_does_nothing_is_told_before_a_run(base: Path, tmp_path: Path, never_loaded: None) -> None:
    """A negative prompt at cfg 1, and keys that change tags where there are none to change."""
    (tmp_path / "data").mkdir()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a house --n ugly --l 1\na （red：1.2） tree --n ugly\n")

    def told(captions: list[str], *keys: str) -> list[str]:
        config = load_config(tiny.write_config(tmp_path, base_model=base), keys)
        samples = [Sample(tmp_path, str(n), text, 64, 64, "") for n, text in enumerate(captions)]
        notes: list[Event] = []
        tell_idle(config, samples, notes.append)
        return [note.text for note in notes if isinstance(note, Note)]

    first, second = told(["a"], f"sample_prompts={prompts}")
    assert first == "note: at cfg 1 the negative prompt is not read" and "（red：1.2） is read as words" in second
    both = ("shuffle_tags=true", "tag_dropout=0.1")
    assert told(["a house", "a red tree"], *both) == [
        "note: shuffle_tags and tag_dropout change no caption: none has several parts between commas"
    ]
    assert told(["zorb, a house", "zorb"], *both) == [
        "note: shuffle_tags changes no caption: none has several parts behind keep_tags: 1"
    ]
    assert told(["zorb, a house, red", "zorb"], *both) == told(["a", "b，c，d"], *both) == told(["a"]) == []


def test_a_grid_tells_what_its_prompts_have_for_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: object) -> None:
        raise UserError("enough")

    monkeypatch.setattr("lora_scripts.families.table.load_pictures", loads)
    prompts, lora, notes = tmp_path / "prompts.txt", tmp_path / "a.safetensors", list[Event]()
    prompts.write_text("a （red：1.2） tree --n ugly\n")
    lora.write_bytes(b"")
    options = GridOptions(output=tmp_path / "g", base=base, loras=(lora,), prompts=prompts, cfgs=(1.0, 7.0))
    with pytest.raises(UserError, match="enough"):
        load_painter(options, find_sources(options), notes.append)
    first, second = (note.text for note in notes if isinstance(note, Note))
    assert first == "note: at cfg 1 the negative prompt is not read" and "（red：1.2） is read as words" in second
