"""The text that A1111's WebUI keeps in its PNGs and reads in "PNG Info". Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from lora_scripts import __version__

_ROW = re.compile(r'\s*([\w ]+): ("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def infotext(prompt: str, negative: str, rows: Mapping[str, object]) -> str:
    """Prompt, negative prompt and one line "Steps: 20, Sampler: Euler a, …"; rows that are None are left out.

    A value with a comma, a colon or a line break is written as a JSON string, which is how the WebUI reads it back.
    """
    values = {**rows, "Version": f"lora-scripts {__version__}"}
    last = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in values.items() if value is not None)
    middle = f"\nNegative prompt: {negative}" if negative else ""
    return f"{prompt}{middle}\n{last}"


def read_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """The way back: (prompt, negative prompt, rows)."""
    said, _, last = text.rpartition("\n")
    prompt, _, negative = said.partition("\nNegative prompt: ")
    rows = {key: json.loads(value) if value[:1] == '"' else value for key, value in _ROW.findall(last)}
    return prompt, negative, rows


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if set(text) & set(",:\n") else text
