"""What `lora-scripts inspect` tells those who read Chinese: every kind of file, and columns that stand one under the
other."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

import lora_scripts
from lora_scripts.chinese.terminal import told
from lora_scripts.chinese.widths import width
from lora_scripts.cli import inspect as command
from lora_scripts.loras.naming import Naming
from lora_scripts.loras.portrait import Block, Module, Portrait
from lora_scripts.workshop.inspect import Inspected, Report
from written import written

FAMILIES = Path(lora_scripts.__file__).parent / "families"
HAN = re.compile("[\u4e00-\u9fff]")
ENGLISH = re.compile(r"\b(a|an|the|of|and|in|for|with|checkpoint|unknown|other|layer) [a-zA-Z]|[a-z]{3,} [a-z]{3,}")

MODULE = Module("lora_te_x", 4, 4.0, 1.0, (8, 8), 0.02, 0.01, finite=True)
NAMES = ("down_blocks 0", "mid_block", "text encoder", "text encoder 2", "layer 3", "other")


def report(path: str, what: str, family: str, naming: str = "kohya") -> Report:
    blocks = [Block(name, 24, 0.02, 0.01, "lora_unet_x") for name in NAMES]
    problems = ["2 modules hold nothing but zeros, first lora_unet_x"]
    seen = Portrait(family, {"float16": 9}, [MODULE], blocks, problems)
    loads = {"A1111": "yes", "PEFT": "its own form; lora-scripts verify with a --base proves it"}
    return Report(
        path=Path(path), what=what, family=family, size=33_792, dtypes={"float16": 92_352},
        hashes={"AutoV2": "500ab1ffc4"}, metadata={"ss_steps": "1"}, triggers=[("neon", 3)], naming=naming, lora=seen,
        problems=problems, loads=loads,
    )  # fmt: skip


REPORTS = [
    report("a.safetensors", "a LoRA", "Stable Diffusion 1.x"),
    report("b.safetensors", "a DoRA", "SDXL", Naming.DIFFUSERS.value),
    report("peft", "a LoRA in PEFT's folder", "a language model", Naming.PEFT.value),
    report("c.safetensors", "a LoRA", "an unknown family", "unknown"),
]
MODEL = replace(
    REPORTS[0], what="a FLUX.1 checkpoint, in a GGUF file", lora=None, loads={}, problems=(), triggers=(),
    parts={"UNet": 7, "text encoders": 8, "other": 9},
)  # fmt: skip


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person reads Chinese."""
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh")


def left(lines: list[str]) -> list[str]:
    """English, besides names, figures and commands."""
    return [line for line in lines if ENGLISH.search(re.sub("lora-scripts [a-z]+|down_blocks", "", line))]


@pytest.mark.parametrize("one", [*REPORTS, MODEL], ids=lambda one: one.what)
def test_a_page_is_in_chinese(one: Report, chinese: None) -> None:
    lines = list(map(told, command.words(Inspected(Path(one.path), (one,), (), is_folder=False))))
    assert left(lines) == [] and "，" in lines[0]
    assert sum(bool(HAN.search(line)) for line in lines) >= 7
    rows = [line for line in lines if line.endswith(("  位置", "  lora_unet_x"))]
    assert len({width(line[: line.rindex("  ")]) for line in rows}) == bool(one.lora)
    if one.lora:
        assert [row.partition("   ")[0] for row in rows[3:]] == ["文本编码器", "第二个文本编码器", "第 3 层", "其他"]


def test_the_table_of_a_folder_is_in_chinese(chinese: None) -> None:
    reports = [replace(one, path=Path("f") / one.path) for one in (*REPORTS, MODEL)]
    lines = list(map(told, command.words(Inspected(Path("f"), tuple(reports), (), is_folder=True))))
    assert left(lines) == [] and lines[0].split()[:2] == ["文件", "是什么"]
    assert "LoRA, 不认识的系列" in lines[4] and "FLUX.1 底模" in lines[5]


def test_english_is_what_it_was() -> None:
    lines = command.words(Inspected(Path("a"), (REPORTS[2],), (), is_folder=False))
    assert lines[0] == "peft: a LoRA in PEFT's folder, a language model, 33 kB"
    assert lines[7] == "text encoder            24       0.02       0.01  lora_unet_x"
    table = command.words(Inspected(Path(), (REPORTS[2], MODEL), (), is_folder=True))
    assert table[1].startswith("peft           LoRA in PEFT's folder, a language model  4     4      1        33 kB")
    assert table[2].startswith("a.safetensors  FLUX.1 checkpoint, in a GGUF file ")


def test_every_kind_of_file_is_in_chinese(chinese: None) -> None:
    """As a page names it; those that are names themselves lose their article."""
    kinds = set()
    for path in FAMILIES.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        kinds |= {text for node in calls if getattr(node.func, "id", "") == "Kind" for text in written(node.args[0])}
    kinds = {kind.replace("\0", "FLUX.1") for kind in kinds}
    assert len(kinds) > 40
    shown = {kind: told(f"x.safetensors: {kind}, 14.4 MB").removeprefix("x.safetensors: ") for kind in kinds}
    names = re.compile("textual inversion|(klein|Chroma) transformer")
    english = {kind: text for kind, text in shown.items() if ENGLISH.search(names.sub("", text))}
    assert english == {} and all(text.endswith("，14.4 MB") for text in shown.values())
