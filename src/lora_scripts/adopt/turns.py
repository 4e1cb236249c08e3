"""Values of other trainers as values of ours: types, and the words that several of them share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any


class Unlike(Exception):
    """A value that has no counterpart; the text says what stands in its place."""


def _got(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def number(value: Any) -> float:
    """A number; also one in quotes, as command lines and the pages of a GUI have them."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"must be a number, not {_got(value)}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise ValueError(f"must be a number, not {_got(value)}")
    return float(value)


def whole(value: Any) -> int:
    """A whole number."""
    try:
        found = number(value)
    except ValueError:
        found = 0.5
    if found != int(found):
        raise ValueError(f"must be a whole number, not {_got(value)}")
    return int(found)


def count(value: Any) -> int:
    """A whole number of 1 or more."""
    found = whole(value)
    if found < 1:
        raise ValueError(f"must be 1 or more, not {_got(value)}")
    return found


def groups(value: Any) -> list[dict[str, Any]]:
    """The groups of keys in a list; what is none is left out."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def flag(value: Any) -> bool:
    """true or false."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError(f"must be true or false, not {_got(value)}")


def text(value: Any) -> str:
    """A text; a number is one that was written without quotes."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be a text, not {_got(value)}")
    return str(value)


def path(value: Any) -> str:
    """A path, with / between folders."""
    if not isinstance(value, str):
        raise ValueError(f"must be a path, not {_got(value)}")
    return value.replace("\\", "/")


def one_folder(value: Any) -> str:
    """A folder, or a list of one."""
    if isinstance(value, list) and len(value) > 1:
        raise Unlike("several references of a picture lie in one folder here, as name_1, name_2: reference_dir")
    return path(value[0] if isinstance(value, list) and value else value)


def some(turn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As `turn`, but 0 and empty is what is not written."""

    def turned(value: Any) -> Any:
        return None if value in (0, "0") else turn(value) or None

    return turned


def choice(words: Mapping[str, Any], otherwise: str) -> Callable[[Any], Any]:
    """One of some words, whatever its case; `otherwise` says what stands in place of any other."""

    def turned(value: Any) -> Any:
        word = text(value).casefold()
        if word not in words:
            raise Unlike(otherwise)
        return words[word]

    return turned


def size(value: Any) -> int | list[int]:
    """Pixels from 512, "512", "512,768", "512x768" or [512, 768]: one number where both sides are the same."""
    parts = value if isinstance(value, list) else re.split(r"[,x]", str(value).lower())
    try:
        sides = [whole(part.strip() if isinstance(part, str) else part) for part in parts]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or isinstance(value, bool):
        raise ValueError(f"must be a size such as 512 or 512,768, not {_got(value)}")
    return sides[0] if len(set(sides)) == 1 else sides


def names(value: Any) -> dict[str, object]:
    """ "conv_dim=4" and the like, as a list or in one text, as keys with values."""
    parts = value if isinstance(value, list) else str(value).split()
    found: dict[str, object] = {}
    for part in parts:
        key, equals, said = str(part).strip().strip("\"'").partition("=")
        if not equals:
            raise ValueError(f"must be key=value, not {_got(part)}")
        found[key.strip()] = said.strip().strip("\"'")
    return found


PRECISION = {
    **dict.fromkeys(("bf16", "bfloat16", "bfloat_16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "float_16"), "fp16"),
    **dict.fromkeys(("no", "fp32", "float", "float32", "float_32", "tfloat_32"), "fp32"),
}
precision = choice(PRECISION, "is no number format of a run here; auto stands in its place")
saved = choice(PRECISION, "is no number format of a file here; fp16 stands in its place")

OPTIMIZERS = {
    **dict.fromkeys(("adamw",), "adamw"),
    **dict.fromkeys(("adamw8bit", "adamw_8bit", "pagedadamw8bit", "bitsandbytes.optim.adamw8bit"), "adamw8bit"),
    **dict.fromkeys(("adafactor",), "adafactor"),
    **dict.fromkeys(("lion",), "lion"),
    **dict.fromkeys(("prodigy", "prodigyopt.prodigy"), "prodigy"),
    **dict.fromkeys(("adamwschedulefree", "schedule_free_adamw", "schedulefree.adamwschedulefree"), "schedule_free"),
}
NEAREST = {
    **dict.fromkeys(("lion8bit", "lion_8bit", "pagedlion8bit"), "lion"),
    **dict.fromkeys(("pagedadamw", "pagedadamw32bit", "adamw8"), "adamw"),
    **dict.fromkeys(("prodigy8bit", "prodigy_adv", "prodigy_plus_schedule_free"), "prodigy"),
    **dict.fromkeys(("prodigyplusschedulefree", "prodigyplus.prodigyplusschedulefree"), "prodigy"),
    **dict.fromkeys(("adam", "adam8bit", "adam8", "adam_8bit", "adamw_adv"), "adamw"),
}
"""Optimizers that are not here, and the one that does nearly the same."""
DECAY = {"adamw": 0.01, "adamw8bit": 0.01, "adafactor": 0.0, "lion": 0.0, "prodigy": 0.0, "schedule_free": 0.0}
"""The weight decay that the packages of these optimizers have where nobody says one."""

SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
    **dict.fromkeys(("cosine_with_restarts", "cosine_with_hard_restarts"), "cosine_restarts"),
}
schedule = choice(SCHEDULES, "is no schedule here; constant stands in its place")
