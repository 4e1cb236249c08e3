"""Writes docs/keys.md and docs/zh/keys.md, every key of the config, from the schema.

python tools/write_keys.py            # writes the pages
python tools/write_keys.py --check    # exit code 1 if a page is not what would be written

The Chinese texts stand in tools/keys.zh.json, each beside the English one that it was made from: a key whose text is
not there, or whose English text has changed since, is named, and nothing is written.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from lora_scripts.config.schema import GROUPS, NEEDS
from lora_scripts.config.types import FEATURES, TargetRule

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLE = Path(__file__).with_name("keys.zh.json")
HEAD = """# Every key

Written from the schema by `python tools/write_keys.py`; a test says when it is out of date. Which keys to change, and
why, stands in [training](training.md). A key without a default must be written. Relative paths count from the folder
that the command is started in. A key that would do nothing beside the others, or for the base at hand, is refused.
"""
CHINESE_HEAD = """# 全部的键

本页由 `python tools/write_keys.py` 根据程序的 schema 写出，过时了会有测试指出。最常改的键见
[写配置](3-config.md)，道理和出处见 [training](../training.md)（英文）。默认值一栏写着“必填”的键不能省。
相对路径从你输入命令时所在的文件夹算起。与其他键放在一起不起作用、或对手头的底模不起作用的键，程序会拒绝，并说明怎么改。
"""


@dataclass(frozen=True)
class Language:
    """How a page says what is not the text of a key."""

    head: str
    columns: str
    types: dict[Any, str]
    either: str
    pair: str
    list_of: str
    choices: str
    bounds: str
    must: str
    only_for: str


ENGLISH = Language(
    head=HEAD,
    columns="| key | type | default | what it does |",
    types={str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", TargetRule: "rule"},
    either=" or ",
    pair="[width, height]",
    list_of="list of {}",
    choices=", ",
    bounds=", ",
    must="must be written",
    only_for=" *Only for {}.*",
)
CHINESE = Language(
    head=CHINESE_HEAD,
    columns="| 键 | 类型 | 默认值 | 作用 |",
    types={str: "文本", int: "整数", float: "数", bool: "true 或 false", Path: "路径", TargetRule: "规则"},
    either="或",
    pair=" [宽, 高]",
    list_of="{}的列表",
    choices="、",
    bounds="，",
    must="必填",
    only_for="*仅用于{}。*",
)


@dataclass(frozen=True)
class Texts:
    """What a page says: of a group its title, of a key its text, of a feature whom it is for."""

    titles: dict[str, str]
    keys: dict[str, str]
    features: dict[str, str]


def english_texts() -> Texts:
    """Those of the schema."""
    keys = {
        key: " ".join((field.description or "").split())
        for group in GROUPS
        for key, field in group.model_fields.items()
    }
    return Texts({group.TITLE: group.TITLE for group in GROUPS}, keys, {text: text for text in FEATURES.values()})


def chinese_texts() -> Texts:
    """Those of the table."""
    table = json.loads(TABLE.read_text("utf-8"))
    return Texts(table["titles"], {key: text["chinese"] for key, text in table["keys"].items()}, table["only for"])


def stale() -> list[str]:
    """What the table lacks, has too much, or has of an English text that is another now."""
    table, now = json.loads(TABLE.read_text("utf-8")), english_texts()
    made_from = {key: text["english"] for key, text in table["keys"].items()}
    wrong = [f"{key}: has no Chinese text" for key in now.keys if key not in made_from]
    wrong += [
        f"{key}: its English text has changed" for key in now.keys if made_from.get(key, now.keys[key]) != now.keys[key]
    ]
    wrong += [f"{key}: is no key any more" for key in made_from if key not in now.keys]
    for name, said, wanted in (("titles", table["titles"], now.titles), ("only for", table["only for"], now.features)):
        wrong += [f"{name}, {text}: is not in both" for text in sorted(said.keys() ^ wanted.keys())]
    return wrong


def type_of(kind: Any, language: Language) -> str:
    """The type of a value, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_of(arguments[0], language)
    if origin is Literal:
        return language.choices.join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(type_of(one, language) for one in arguments if one is not type(None))
        return language.either.join(kinds)
    if origin is tuple:
        return language.list_of.format(type_of(arguments[0], language)) if arguments[-1] is Ellipsis else language.pair
    return language.types[kind]


def range_of(field: FieldInfo, language: Language) -> str:
    """The bounds of a number, wherever in the annotation they stand."""
    found: list[Any] = list(field.metadata)
    waiting = [field.annotation]
    while waiting:
        kind = waiting.pop()
        found += getattr(kind, "__metadata__", ())
        waiting += [one for one in typing.get_args(kind) if typing.get_origin(kind) is not Literal]
    marks = [one for info in found for one in getattr(info, "metadata", [info])]
    words = []
    for mark in marks:
        for sort, name, sign in ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<")):
            if isinstance(mark, sort):
                words.append(f"{sign} {getattr(mark, name)}")
    return language.bounds.join(dict.fromkeys(words))


def shown(value: object) -> str:
    """A default as it would be written."""
    if value is None or value == () or value == "":
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def page(language: Language, texts: Texts) -> str:
    """The whole page."""
    lines = [language.head]
    for group in GROUPS:
        lines += [f"\n## {texts.titles[group.TITLE]}\n", language.columns, "|---|---|---|---|"]
        for key, field in group.model_fields.items():
            kind = language.bounds.join(filter(None, [type_of(field.annotation, language), range_of(field, language)]))
            default = language.must if field.is_required() else shown(field.default)
            text = texts.keys[key].replace("|", "\\|")
            if key in NEEDS and NEEDS[key] != "pictures":
                text += language.only_for.format(texts.features[FEATURES[NEEDS[key]]])
            lines.append(f"| `{key}` | {kind} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    if wrong := stale():
        print("\n".join(f"tools/keys.zh.json: {one}" for one in wrong))
        return 1
    pages = {"keys.md": page(ENGLISH, english_texts()), "zh/keys.md": page(CHINESE, chinese_texts())}
    old = [name for name, text in pages.items() if not _is(DOCS / name, text)]
    if "--check" in sys.argv[1:]:
        for name in old:
            print(f"docs/{name} is not what the schema says: run python tools/write_keys.py")
        return 1 if old else 0
    for name in old:
        (DOCS / name).write_text(pages[name], "utf-8")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text("utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
