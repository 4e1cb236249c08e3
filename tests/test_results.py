"""Every command's result: what --json prints is one document, and holds every figure that people are told."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blocks import random_lora, save
from conftest import offline
from lora_scripts.cli import COMMANDS, main
from lora_scripts.events import Event, Progress, Saved
from lora_scripts.workshop.common import Weighted
from lora_scripts.workshop.extract import extract
from lora_scripts.workshop.merge import merge, unmerge

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
NAMES = re.compile(r"\b[0-9a-f]{8,64}\b|1\.x|3 x 3|AutoV\d|sha256")


@pytest.fixture(scope="module")
def folder(base: Path, family: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two LoRAs, one of them a DoRA's plain part, the base with one of them, and a picture of it."""
    place = tmp_path_factory.mktemp("workshop")
    facts = {"ss_v2": "False", "ss_output_name": "a", "modelspec.trigger_phrase": "neon"}
    save(place / "a.safetensors", random_lora(family, 4, 2.0, 1), **facts)
    save(place / "b.safetensors", random_lora(family, 2, 2.0, 2))
    (place / "base.safetensors").symlink_to(base)
    (place / "loras").mkdir()
    (place / "loras" / "a.safetensors").symlink_to(place / "a.safetensors")
    merge(base, [Weighted(place / "a.safetensors", 0.8)], place / "merged.safetensors")
    return place


CASES = {
    "merge": "a.safetensors:0.8 b.safetensors --base base.safetensors --output OUT.safetensors",
    "unmerge": "a.safetensors:0.8 --model merged.safetensors --output OUT.safetensors --compare base.safetensors",
    "extract": "--base base.safetensors --tuned merged.safetensors --rank 3 --output OUT.safetensors",
    "resize": "a.safetensors --rank 2 --output OUT.safetensors",
    "combine": "a.safetensors:0.8 b.safetensors:1.5 --method svd --rank 3 --output OUT.safetensors",
    "combine linear": "a.safetensors a.safetensors:0.5 --method linear --output OUT.safetensors",
    "combine report": "a.safetensors b.safetensors --report-only",
    "convert": "a.safetensors --to diffusers --dtype fp16 --output OUT.safetensors",
    "convert peft": "a.safetensors --to peft --output OUT",
    "inspect": "a.safetensors",
    "inspect base": "base.safetensors",
    "inspect folder": "loras",
    "metadata": "a.safetensors",
    "metadata change": "a.safetensors --set modelspec.title=A --strip --output OUT.safetensors",
    "card": "a.safetensors --output OUT --overwrite",
    "generate": "--base base.safetensors --prompt a<lora:a:0.8> --lora-dir loras --steps 2 --size 64 --count 2 "
    "--output OUT.png",
    "verify": "a.safetensors --base base.safetensors --in A1111 diffusers",
}


def leaves(value: Any) -> Iterator[float]:
    """Every number of a document: also how many entries a list has, and numbers in texts."""
    match value:
        case bool() | None:
            pass
        case int() | float():
            yield float(value)
        case str():
            yield from (number for number, _ in numbers(value))
        case dict():
            yield float(len(value))
            for key, one in value.items():
                yield from leaves(key)
                yield from leaves(one)
        case list():
            yield float(len(value))
            for one in value:
                yield from leaves(one)


def numbers(text: str) -> Iterator[tuple[float, float]]:
    """(number, half of its last digit) of every figure; hashes and names are none."""
    for match in NUMBER.finditer(NAMES.sub("", text)):
        digits, _, exponent = match[0].replace(",", "").partition("e")
        places = len(digits.partition(".")[2])
        yield float(match[0].replace(",", "")), 0.5 * 10.0 ** (int(exponent or 0) - places)


@pytest.mark.parametrize("case", CASES)
def test_json_holds_every_figure_that_people_read(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    command, name = case.split()[0], case.replace(" ", "-")

    def run(out: str, *more: str) -> tuple[str, str]:
        words = [word.replace("OUT", out) for word in CASES[case].split()]
        capsys.readouterr()
        with offline():
            assert main([command, *words, *more]) == 0
        told = capsys.readouterr()
        return told.out, told.err

    people, _ = run(f"{name}-words")
    document, lines = run(f"{name}-json", "--json")
    result = json.loads(document)  # one document and nothing else
    assert all("event" in json.loads(line) for line in lines.splitlines() if line.startswith("{"))
    known = list(leaves(result))
    known += [value * scale for value in known for scale in (100, 2**-10, 2**-20, 2**-30)]  # percents and sizes
    missing = [n for n, half in numbers(people) if not any(abs(abs(n) - abs(v)) <= half * 1.001 for v in known)]
    assert not missing, f"not in the document: {missing} of\n{people}"


def test_every_command_has_a_result_and_words() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"lora_scripts.cli.{name}")
        assert hasattr(module, "words") and module.call.__annotations__["return"] != "None", name


def test_results_are_frozen_and_progress_is_told(folder: Path, base: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    weighted = [Weighted(folder / "a.safetensors", 0.8)]
    merged = merge(base, weighted, tmp_path / "m.safetensors", sink=events.append)
    counts = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert counts == [(n, merged.changed) for n in range(1, merged.changed + 1)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        merged.changed = 0  # type: ignore[misc]
    events.clear()
    extract(base, tmp_path / "m.safetensors", tmp_path / "e.safetensors", rank=2, sink=events.append)
    counts = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert counts[0][0] == 1 and counts[-1][0] == counts[-1][1] == len(counts)


def test_a_sink_may_end_the_work(folder: Path, tmp_path: Path) -> None:
    """Nothing is left of a merge that is stopped."""

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unmerge(
            folder / "merged.safetensors", [Weighted(folder / "a.safetensors")], tmp_path / "u.safetensors", sink=stop
        )
    assert not list(tmp_path.iterdir())


def test_pictures_are_told_when_they_are_written(folder: Path, base: Path, tmp_path: Path) -> None:
    from lora_scripts.generate.command import generate_pictures
    from lora_scripts.generate.prompt import GenerateOptions

    written: list[Path] = []

    def look(event: Event) -> None:
        if isinstance(event, Saved):
            written.append(event.path)
            with Image.open(event.path) as image:  # whole by then
                image.load()

    options = GenerateOptions(base=base, prompt="a", output=tmp_path / "p.png", steps=2, size=(64, 64), count=2, seed=7)
    result = generate_pictures(options, look)
    assert [picture.path for picture in result.pictures] == written == [tmp_path / "p-1.png", tmp_path / "p-2.png"]
    assert [picture.seed for picture in result.pictures] == [7, 8]
    with Image.open(written[1]) as image:
        assert image.info["parameters"] == result.pictures[1].parameters


def test_words_and_json_need_no_torch() -> None:
    """The command line words results by their fields alone."""
    code = "import sys, importlib\nfrom lora_scripts.cli import COMMANDS\n"
    code += "for name in COMMANDS: importlib.import_module(f'lora_scripts.cli.{name}')\n"
    code += "print([name for name in ('torch', 'PIL', 'rich', 'pydantic') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr
