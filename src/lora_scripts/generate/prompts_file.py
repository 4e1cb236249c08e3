"""A file of prompts, one a line, with options as kohya's and the WebUI's users write them. Standard library only.

    a red house on sand <lora:neon:0.8> --n blurry, text --w 512 --h 768 --d 42 --l 7 --s 20

An empty line and one that begins with # say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_scripts.config.prompt_line import PromptLine, parse_line
from lora_scripts.errors import UserError, raise_all
from lora_scripts.utf8 import read_lines

__all__ = ["PromptLine", "parse_line", "preview_lines", "read_prompts"]


def preview_lines(asked: Sequence[str] | Path) -> list[PromptLine]:
    """Of a config's `sample_prompts`: texts, or a file of them. UserErrors as `read_prompts`."""
    if isinstance(asked, Path):
        return read_prompts(asked, tags=False)
    return [parse_line(text, tags=False) for text in asked]


def read_prompts(path: Path, *, tags: bool = True) -> list[PromptLine]:
    """All prompts of a file, in order. UserErrors, with file and line, for everything that is wrong in it.

    `tags` as of `parse_line`.
    """
    if not path.exists():
        raise UserError("no such file", file=path, hint="write the prompts into a text file, one a line, and name that")
    lines, faults = [], []
    for number, row in enumerate(read_lines(path, pipe=True), 1):
        if not row.strip() or row.lstrip().startswith("#"):
            continue
        try:
            lines.append(parse_line(row, path, number, tags=tags))
        except UserError as error:
            faults += error.errors
    if not lines and not faults:
        faults.append(UserError("holds no prompt", file=path, hint="write one a line"))
    raise_all(faults)
    return lines
