"""One line of a list of prompts, with options as kohya's and the WebUI's users write them. Standard library only.

a red house on sand --n blurry, text --w 512 --h 768 --d 42 --l 7 --s 20
make it night --ref street.jpg --ref "my pictures/lamp --s 20.png"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.config.values import at_home, check_size
from lora_scripts.errors import UserError, raise_all

# An option begins at the line's start or after a space; "--" alone and a dash inside a word are text.
_OPTION = re.compile(r"(?:^|\s)--([^\W\d_][\w-]*)(?=\s|=|$)=?")
_QUOTED = re.compile(r"""(?<=\s)--(?:ref|ci|ctrl_img)(?:\s+|=)("[^"]*"|'[^']*')(?=\s|$)""")
"""A path in quotes, in which nothing is an option."""
TAG = re.compile(r"<\s*(lora|lyco|hypernet)\b[^<>,\n]*>?", re.IGNORECASE)
"""What calls a LoRA, whole or not."""
_KNOWN = "--n negative --w width --h height --d seed --l cfg --s steps --ref picture"


@dataclass(frozen=True)
class PromptLine:
    """One line; None for what it does not say."""

    prompt: str
    negative: str | None = None
    width: int | None = None
    """Pixels."""
    height: int | None = None
    seed: int | None = None
    cfg: float | None = None
    steps: int | None = None
    references: tuple[Path, ...] = ()
    """Pictures to draw from, for a model that edits."""
    file: Path | None = field(default=None, compare=False)
    """Where it stands, as `line`, which counts from 1; None: in no file of prompts."""
    line: int | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """As it is written: the prompt with its options."""
        told = [(name, getattr(self, key)) for name, (key, _) in _OPTIONS.items()]
        each = [(name, one) for name, value in told for one in (value if isinstance(value, tuple) else [value])]
        return " ".join(
            [self.prompt, *(f"--{name} {_quoted(value)}".rstrip() for name, value in each if value is not None)]
        )


def parse_line(text: str, file: Path | None = None, line: int | None = None, *, tags: bool = True) -> PromptLine:
    """The prompt of a line and what follows it. UserError(s), with file and line, for all that is wrong with it.

    `tags=False`: where <lora:…> has no meaning, it is one of the faults.
    """
    hidden = _QUOTED.sub(lambda quoted: quoted[0].replace(quoted[1], "_" * len(quoted[1])), text)
    found = list(_OPTION.finditer(hidden))
    prompt = (text[: found[0].start()] if found else text).strip()
    values: dict[str, Any] = {}
    faults = [] if prompt else [UserError("there is no prompt", file=file, line=line, hint="write it before the --")]
    if not tags and (tag := TAG.search(prompt)):
        why = f"holds {tag[0]!r}, but previews show what is being trained, and nothing else"
        faults.append(UserError(why, file=file, line=line, hint="take it out"))
    ends = [match.start() for match in found] + [len(text)]
    for match, end in zip(found, ends[1:], strict=True):
        name, value = _ALSO.get(match[1], match[1]), text[match.end() : end].strip()
        try:
            key, convert = _option(name)
            if key in values and name not in _SEVERAL:
                raise ValueError(f"--{name} is given twice")
            made = convert(name, value)
            values[key] = (*values.get(key, ()), made) if name in _SEVERAL else made
        except ValueError as error:
            faults.append(UserError(str(error), file=file, line=line, hint=f"the options are {_KNOWN}"))
    raise_all(faults)
    return PromptLine(prompt, **values, file=file, line=line)


def _quoted(value: object) -> object:
    """A path as it is read back."""
    if not isinstance(value, Path) or not _OPTION.search(str(value)):
        return value
    mark = "'" if '"' in str(value) else '"'
    return f"{mark}{value}{mark}"


def _option(name: str) -> tuple[str, Callable[[str, str], object]]:
    if name not in _OPTIONS:
        raise ValueError(f"unknown option --{name}")
    return _OPTIONS[name]


def _text(name: str, value: str) -> str:
    return value  # empty: no negative prompt, whatever the command line says


def _picture(name: str, value: str) -> Path:
    quoted = value[:1] in ("'", '"') and len(value) > 1 and value[-1] == value[0]
    try:
        path = at_home(value[1:-1] if quoted else value)  # no shell has read the line
    except UserError as error:
        raise ValueError(f"--{name} {error.message}") from None
    if not value:
        raise ValueError(f"--{name} names no picture")
    if not path.is_file():
        what = "a folder, not a picture" if path.is_dir() else "no such picture"
        raise ValueError(f"--{name} {value}: {what}")
    return path


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def convert(name: str, value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"--{name} must be a whole number from {low} to {high}, not {value!r}")
        return int(value)

    return convert


def _side(name: str, value: str) -> int:
    side = _whole(1, 10**6)(name, value)
    try:
        check_size(side)
    except ValueError as error:
        raise ValueError(f"--{name} {error}") from None
    return side


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 100:
        raise ValueError(f"--{name} must be a number from 0 to 100, not {value!r}")
    return number


_OPTIONS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "n": ("negative", _text),
    "w": ("width", _side),
    "h": ("height", _side),
    "d": ("seed", _whole(0, 2**32 - 1)),
    "l": ("cfg", _number),
    "s": ("steps", _whole(1, 1000)),
    "ref": ("references", _picture),
}
_ALSO = {"ci": "ref", "ctrl_img": "ref"}
"""What musubi-tuner and ai-toolkit call options."""
_SEVERAL = frozenset(["ref"])
"""What may be said more than once."""
