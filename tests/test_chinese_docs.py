"""The pages below docs/zh say what is so: keys, commands, figures, links, and faults as they are printed."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml

import tiny
from lora_scripts.cli import main, parsers
from lora_scripts.config.schema import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
ENGLISH = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml")]
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_a_key_without_chinese_or_with_other_english_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_from_file_location("write_keys", ROOT / "tools" / "write_keys.py")
    assert spec is not None and spec.loader is not None
    tool = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "write_keys", tool)
    spec.loader.exec_module(tool)
    table = json.loads(tool.TABLE.read_text("utf-8"))
    table["keys"]["epochs"]["english"] = "How often."
    table["keys"]["old"] = table["keys"].pop("flip")
    del table["titles"]["Memory"]
    monkeypatch.setattr(tool, "TABLE", tmp_path / "keys.zh.json")
    monkeypatch.setattr(tool, "DOCS", tmp_path)
    tool.TABLE.write_text(json.dumps(table), "utf-8")
    assert tool.main() == 1 and not (tmp_path / "keys.md").exists()
    told = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "flip: has no Chinese text",
        "epochs: its English text has changed",
        "old: is no key any more",
        "titles, Memory: is not in both",
    ]


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = [head.strip().lower() for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in heads}


@named
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^):#]*)#([^)]+)\)", page.read_text("utf-8")):
        assert anchor in _anchors(page.parent / target if target else page), f"{target}#{anchor}"


@named
def test_keys_that_are_written_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    keys = {key for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) for key in yaml.safe_load(block)}
    keys |= set(re.findall(r"`([a-z]+_[a-z_]+): [^`]*`", text))
    assert keys <= set(TrainConfig.model_fields)


@named
def test_commands_that_are_written_exist_with_their_options(page: Path) -> None:
    for command, rest in re.findall(r"lora-scripts ([a-z]+)\b([^`#\n|]*)", page.read_text("utf-8")):
        used = set(re.findall(r"(?<!\S)--[a-z-]+", rest))
        assert used <= set(re.findall(r"--[a-z-]+", parsers()[command].format_help())), f"{command}{rest}"


@named
def test_figures_stand_in_an_english_page(page: Path) -> None:
    """Those with GB, GiB or MB."""
    figure = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?) (GB|GiB|MB)")
    here, there = set(figure.findall(page.read_text("utf-8"))), " ".join(p.read_text("utf-8") for p in ENGLISH)
    assert here <= set(figure.findall(there)), here - set(figure.findall(there))


def test_the_defaults_of_models_are_the_templates() -> None:
    text = (ROOT / "docs" / "zh" / "models.md").read_text("utf-8")
    templates = dict(re.findall(r"^\| ([^|]+?) \|[^\n]*?`(\w+_style\.yaml)`", text, re.MULTILINE))
    assert set(templates.values()) == {path.name for path in (ROOT / "configs").glob("*_style.yaml")}
    for title, part in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        for told in re.findall(r"^- \*\*默认值\*\*(.*(?:\n  .*)*)", part, re.MULTILINE):
            template = yaml.safe_load((ROOT / "configs" / templates[title]).read_text("utf-8"))
            for span in re.findall(r"`([a-z_]+: [^`]+)`", told):
                for key, value in yaml.safe_load(span).items():
                    assert template.get(key, TrainConfig.model_fields[key].default) == value, f"{title}: {span}"


def _typed(here: Path, name: str, lines: str) -> None:
    """A training with the given config, which is refused."""
    (here / name).write_text(lines, encoding="utf-8")
    assert main(["train", "--config", name]) == 2


def test_faults_are_told_as_the_page_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = tiny.write_base(tmp_path / "base.safetensors").read_bytes()
    for name, data in {
        "half.safetensors": good[:20000],
        "page.safetensors": b"<!doctype html><p>no",
        "old.ckpt": b"x",
    }.items():
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / name).write_bytes(data)
    (tmp_path / "models" / "base.safetensors").write_bytes(good)
    rows = [f"{n}.png,a cat {n}" for n in range(8)]
    sets = {
        "mine": rows,
        "d1": [*rows[:3], "3.png,a cat 3, red", *rows[4:]],
        "d2": rows[:5],
        "d3": [*rows, "ship.png,a ship"],
        "d4": [*rows[:3], "3.png,红色的房子在沙滩上", *rows[4:]],
        "d5": rows,
    }
    for folder, captions in sets.items():
        tiny.write_pictures(tmp_path / "data" / folder, 8)
        code = "gbk" if folder == "d4" else "utf-8"
        text = "\n".join(["filename,prompt", *captions]) + "\n"
        (tmp_path / "data" / folder / "metadata.csv").write_bytes(text.encode(code))
    broken = tmp_path / "data" / "d5" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "data" / "empty").mkdir()
    usual = {"train_data_dir": "data/mine", "base_model": "models/base.safetensors", "output_dir": "output/mine"}
    usual |= {"epochs": "1", "batch_size": "2", "resolution": "64"}
    each: list[dict[str, str]] = [
        {"lora_rnk": "8"}, {"lora_rank": "500"}, {"epochs": "many"}, {"base_model": "models/nothere.safetensors"},
        {"base_model": "models/old.ckpt"}, {"base_model": "models/half.safetensors"},
        {"base_model": "models/page.safetensors"}, {"train_data_dir": "data/nope"}, {"train_data_dir": "data/empty"},
        *({"train_data_dir": f"data/{name}"} for name in ("d1", "d2", "d3", "d4", "d5")), {"trigger_word": "zibbo"},
        {"learning_rate": "0.05"}, {"adapter": "dora", "base_precision": "int8"}, {"offload_blocks": "4"},
        {"keep_tags": "3"}, {"device": "cuda"},
    ]  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for keys in each:
        _typed(tmp_path, "c.yaml", "".join(f"{key}: {value}\n" for key, value in (usual | keys).items()))
    rest = "base_model: models/base.safetensors\noutput_dir: output/x\n"
    for first in ('train_data_dir: "C:\\Users\\me"\n', "train_data_dir：data/mine\n", "train_data_dir: “data/mine”\n"):
        _typed(tmp_path, "c.yaml", first + rest)
    _typed(tmp_path, "c.yaml", "train_data_dir: data/mine\n\tepochs: 3\n")
    (tmp_path / "c.yaml").write_text("".join(f"{key}: {value}\n" for key, value in usual.items()), encoding="utf-8")
    assert main(["train", "--config", "c.yaml", "--resume"]) == 2
    told = [line.removeprefix("error: ").replace("\\", "/") for line in capsys.readouterr().err.splitlines()]
    text = (ROOT / "docs" / "zh" / "problems.md").read_text("utf-8")
    shown = re.findall(r"^\| `((?:[^`])+)` \|", text, re.MULTILINE)
    later = re.compile(
        "memory ran out|step …|output/mine: (this|cannot)|there is no nope|models/base.safetensors: already"
    )
    now = [line for line in shown if not later.match(line)]
    assert len(shown) >= 30 and len(now) >= 24
    for line in now:
        wanted = re.compile(".+".join(map(re.escape, line.replace("\\", "/").split("…"))))
        assert any(wanted.fullmatch(one) for one in told), line
