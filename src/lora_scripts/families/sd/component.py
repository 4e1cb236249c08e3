"""A part of a diffusers folder by its config: the one place where a damaged value becomes a line for a person.

Families say what they make of a config inside of `configured`; what its values break there, in whatever way the
libraries have, is told with the file. What would break only when the part is asked, `require_kinds` finds before.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families.sd.check import read_config

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
PLAIN = "get the folder as it was published"
_OTHERS = (UserError, MemoryError, ImportError)
"""What is not the config's matter; everything else is: transformers' own errors on values derive from nothing else."""
_SAID = 200
"""So many letters of what a library says; torch lists every tensor."""
_KINDS: Mapping[type, str] = {bool: "a number", int: "a number", float: "a number", str: "text", dict: "a table"}
_LISTS = (list, tuple)


@contextmanager
def configured(folder: Path, name: str = CONFIG) -> Iterator[dict[str, Any]]:
    """A component's config, {} where there is none that can be read. UserError that names the file for whatever goes
    wrong inside of the block, but for a shortage of memory."""
    try:
        yield read_config(folder, name) or {}
    except _OTHERS:
        raise
    except Exception as error:
        if _ran_out(error):
            raise
        said = " ".join(str(error).split())[:_SAID]
        raise UserError(f"a value makes no sense ({said})", file=folder / name, hint=PLAIN) from None


def _ran_out(error: Exception) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    from lora_scripts.compute.meter import ran_out

    return ran_out(error)


def number_of(config: Mapping[str, Any], key: str, usual: float) -> float:
    """A number of a config, `usual` where it says nothing. ValueError for what is none."""
    value = config.get(key, usual)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{key} is {_shown(value)}, and not a number")
    return float(value)


def shift_of(config: Mapping[str, Any]) -> float:
    """Of a scheduler whose shift is the same for every picture. ValueError for what is no shift."""
    shift = number_of(config, "shift", 1.0)
    if shift <= 0:
        raise ValueError(f"shift is {shift:g}, and must be more than 0")
    return shift


def require_kinds(config: Mapping[str, Any], kind: Any) -> None:
    """ValueError where the config of a class of diffusers has text for a number, a number for a list and the like.

    What the class may take is read from its arguments and their defaults. null is left to the class, which has its own
    use for it, but where it wants a number that is no count.
    """
    hints = typing.get_type_hints(kind.__init__)
    for name, argument in inspect.signature(kind.__init__).parameters.items():
        if name not in config or name not in hints:
            continue
        value, wanted = config[name], _kinds(hints[name]) | _kinds(type(argument.default))
        if value is None:
            fits = hints[name] is not float or argument.default is None
        else:
            fits = not wanted or bool(_kinds(type(value)) & wanted)
            inside = _inside(hints[name]) if isinstance(value, list) else set()
            if inside and any(value is None or not _kinds(type(value)) & inside for value in value):
                raise ValueError(f"{name} is {_shown(value)}, and not a list of {' or '.join(sorted(inside))} each")
        if not fits:
            raise ValueError(f"{name} is {_shown(value)}, and not {' or '.join(sorted(wanted))}")


def _kinds(hint: Any) -> set[str]:
    """What an annotation, or the type of a value, allows, as people call it; empty: anything."""
    if hint in (inspect.Parameter.empty, type(None)):
        return set()
    origin = typing.get_origin(hint) or hint
    if origin in _LISTS:
        return {"a list"}
    if origin in _KINDS:
        return {_KINDS[origin]}
    parts = [_kinds(part) for part in typing.get_args(hint) if part is not type(None)]
    return set().union(*parts) if all(parts) else set()


def _inside(hint: Any) -> set[str]:
    """As `_kinds`, of the members of a list."""
    lists = [one for one in (hint, *typing.get_args(hint)) if (typing.get_origin(one) or one) in _LISTS]
    members = [_kinds(part) for one in lists for part in typing.get_args(one) or (Any,) if part is not ...]
    return set().union(*members) if all(members) else set()


def _shown(value: object) -> str:
    """As it stands in the file, more or less."""
    return "null" if value is None else repr(value)[:40]
