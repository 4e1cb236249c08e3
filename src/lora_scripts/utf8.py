"""What people and other programs wrote, read so that nothing in it can end the program."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 100
"""Lists and objects inside one another. Python itself gives up at about 1000, sooner the deeper it stands."""
TOO_DEEP = "lists or objects nested too deeply"


def load_json(text: str) -> Any:
    """The value of a JSON text. ValueError in words for what is none, a JSONDecodeError where it knows the place."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python converts no number of more than 4300 digits
        raise ValueError("a number of thousands of digits") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if _too_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def kind_of(value: object) -> str:
    """What a value is, for people: "a list"."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for group in inside for one in group if isinstance(one, dict | list)]
        if not level:
            return False
    return True
