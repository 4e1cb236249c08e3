"""Writes docs/keys.md, every key of the config, from the schema.

python tools/write_keys.py            # writes the page
python tools/write_keys.py --check    # exit code 1 if the page is not what would be written
"""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from lora_scripts.config.schema import GROUPS, NEEDS
from lora_scripts.config.types import FEATURES, TargetRule

PAGE = Path(__file__).resolve().parents[1] / "docs" / "keys.md"
HEAD = """# Every key

Written from the schema by `python tools/write_keys.py`; a test says when it is out of date. Which keys to change, and
why, stands in [training](training.md). A key without a default must be written. Relative paths count from the folder
that the command is started in. A key that would do nothing beside the others, or for the base at hand, is refused.
"""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", TargetRule: "rule"}


def type_of(kind: Any) -> str:
    """The type of a value, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_of(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_of(one) for one in arguments if one is not type(None)))
    if origin is tuple:
        return f"list of {type_of(arguments[0])}" if arguments[-1] is Ellipsis else "[width, height]"
    return WORDS[kind]


def range_of(field: FieldInfo) -> str:
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
    return ", ".join(dict.fromkeys(words))


def shown(value: object) -> str:
    """A default as it would be written."""
    if value is None or value == () or value == "":
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for group in GROUPS:
        lines += [f"\n## {group.TITLE}\n", "| key | type | default | what it does |", "|---|---|---|---|"]
        for key, field in group.model_fields.items():
            bounds = range_of(field)
            kind = type_of(field.annotation) + (f", {bounds}" if bounds else "")
            default = "must be written" if field.is_required() else shown(field.default)
            text = " ".join((field.description or "").split()).replace("|", "\\|")
            if key in NEEDS and NEEDS[key] != "pictures":
                text += f" *Only for {FEATURES[NEEDS[key]]}.*"
            lines.append(f"| `{key}` | {kind} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, "utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text("utf-8") == text:
        return 0
    print("docs/keys.md is not what the schema says: run python tools/write_keys.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
