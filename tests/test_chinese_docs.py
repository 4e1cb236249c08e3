"""The pages below docs/zh say what is so: keys, commands and links."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
