"""Configs as people open them: keys and values, and reasons behind them in the person's language."""

from __future__ import annotations

from collections.abc import Iterable

from lora_scripts.chinese.spoken import language
from lora_scripts.chinese.terminal import noted
from lora_scripts.chinese.widths import ljust
from lora_scripts.config.load import scalar

_COLUMNS = 52
"""That keys and values take, before the reasons."""


def commented(key: str, value: str, *why: str) -> str:
    """A line of a config: the key, its value in YAML, and the reason behind it as a comment."""
    line = f"{key}: {value} "
    return f"{ljust(line, _COLUMNS) if language() == 'zh' else line.ljust(_COLUMNS)}# {noted(*why)}"


def listed(key: str, values: Iterable[object], *why: str) -> list[str]:
    """A key with a list, a line for each value."""
    return [f"{key}:  # {noted(*why)}", *(f"  - {scalar(value)}" for value in values)]


def remark(text: str) -> str:
    """A comment on a line of its own."""
    return f"# {noted(text)}"
