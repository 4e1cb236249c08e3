"""The word that calls a LoRA, all the way: captions, config, previews, file, report, card, the line to copy."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors import safe_open

import tiny
from lora_scripts.cli import main
from lora_scripts.data.scan import scan
from lora_scripts.data.trigger import Trigger, calling, holds
from lora_scripts.run.configs import load_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.write_base(tmp_path / "base.safetensors")
    tiny.write_pictures(tmp_path / "data", 5)
    return tmp_path


def test_from_the_captions_to_the_line_to_copy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "--input", "data", "--words-only", "--trigger", "zorb"]) == 0
    rows = list(csv.reader((here / "data" / "metadata.csv").open(encoding="utf-8")))
    assert all(caption.startswith("zorb, ") for _, caption in rows[1:])
    assert main(["new", "mine", "--data", "data", "--base", "base.safetensors"]) == 0  # it sees the word by itself
    config = load_config(Path("configs/mine.yaml"))
    assert config.trigger_word == "zorb" and all(p.startswith("zorb, ") for p in config.sample_prompts)
    capsys.readouterr()
    quick = ["epochs=1", "sample_steps=1", "lora_rank=1", "precision=fp32", 'sample_prompts=["a cat"]', "val_split=0"]
    assert main(["train", "--config", "configs/mine.yaml", *quick]) == 0
    told = capsys.readouterr()
    assert "5 of 5 captions have zorb, which calls the LoRA, and no preview has it" in told.out + told.err
    line = re.search(r"prompt: (<lora:mine:[0-9.]+> zorb)\)", told.out)  # at the strength that was measured
    assert line is not None
    lora = here / "output" / "mine" / "mine.safetensors"
    with safe_open(lora, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "zorb"
        assert file.metadata()["lora_scripts.trigger_agreement"] == "5 of 5"
    page = lora.with_name("report.html").read_text("utf-8")
    assert page.count(f"{html.escape(line[1])}</code>") == 2 and "5 of 5 captions have it" in page
    assert main(["card", str(lora)]) == 0
    card = (lora.parent / "mine-card" / "README.md").read_text("utf-8")
    assert "Trigger words: **zorb** (5 of 5 captions have it)\n" in card and f"{line[1]}\n" in card  # the same line
    assert json.loads(lora.with_suffix(".json").read_text("utf-8"))["activation text"] == "zorb"


def test_a_word_that_no_caption_holds_calls_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.write_config(here, trigger_word="zorb")
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert "trigger_word: no caption holds zorb; write it there: lora-scripts label --input" in told
    assert "--words-only --trigger zorb" in told and not (here / "out" / "config.yaml").exists()
    config = tiny.write_config(here, trigger_word='"a<b"')
    assert main(["train", "--config", str(config)]) == 2
    assert "trigger_word: cannot stand in a prompt with < or >" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["txt", "caption", "data/metadata.jsonl", "captions.csv", "data/metadata.csv"])
def test_the_command_that_is_told_writes_the_word_where_the_captions_are(
    here: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    rows = list(csv.reader((here / "data" / "metadata.csv").open(encoding="utf-8")))[1:]
    (here / "data" / "metadata.csv").unlink()
    for name, caption in rows:
        if "." not in place:
            (here / "data" / name).with_suffix(f".{place}").write_text(caption, encoding="utf-8")
    if place.endswith("jsonl"):
        lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in rows]
        Path(place).write_text("\n".join(lines), encoding="utf-8")
    elif "." in place:
        with Path(place).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["filename", "prompt"], *rows])
    more = {"metadata_path": place} if "." in place else {}
    config = tiny.write_config(here, trigger_word="zorb", train_data_dir="data", **more)
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err.partition("write it there: lora-scripts ")[2]
    assert main(shlex.split(told)) == 0
    table = Path(place) if "." in place else None
    assert [s.caption for s in scan(Path("data"), table)] == [f"zorb, {caption}" for _, caption in sorted(rows)]


def test_the_card_of_an_older_file_asks_the_captions_of_its_run(here: Path) -> None:
    """Files of other programs, and those written before the word was stored, say nothing of it."""
    from lora_scripts.workshop.model_card import _triggers

    rows = "".join(f"{i}.png,zorb by a lake {i}\n" for i in range(5))
    (here / "data" / "metadata.csv").write_text(f"filename,prompt\n{rows}", encoding="utf-8")
    assert _triggers([], load_config(tiny.write_config(here))) == ["zorb"]


@pytest.mark.parametrize(
    ("text", "word", "there"),
    [
        ("Zorb, a cat", "zorb", True),
        ("zorbs, a cat", "zorb", False),
        ("a cat of zorb-1", "zorb-1", True),
        ("neon style, rain", "Neon Style", True),
        ("雨夜的霓虹街道", "霓虹", True),
        ("anything", "a.c", False),
    ],
)
def test_a_word_stands_by_itself(text: str, word: str, there: bool) -> None:
    assert holds(text, word) is there


def test_what_is_named_comes_before_what_is_seen() -> None:
    captions = ["zorb, a cat", "zorb, a dog of mia", "zorb, mia", "mia and kim"]
    assert calling((), captions[:3]) == Trigger(("zorb",), 3, 3)
    assert calling((), ["turn it into neon"] * 3) == Trigger(("turn it into neon",), 3, 3)
    assert calling(("mia",), captions) == Trigger(("mia",), 3, 4)
    assert calling(("kim", "mia"), captions) == Trigger(("kim", "mia"), 3, 4)
