"""Optimizers and their arguments, as all trainers have them."""

from __future__ import annotations

import re

from lora_scripts.adopt import turns
from lora_scripts.adopt.found import Found, Left
from lora_scripts.adopt.turns import number


def put_optimizer(found: Found, kind: str, key: str) -> str:
    """The optimizer of that name of theirs, or the nearest; the name in use."""
    word = kind.casefold()
    name = turns.OPTIMIZERS.get(word) or turns.NEAREST.get(word, "adamw")
    if word not in turns.OPTIMIZERS:
        found.leave(
            key, f"is not here; {name} stands in its place" + ("" if word in turns.NEAREST else ": look at the rate")
        )
    if name != "adamw":
        found.put("optimizer", name, key)
    return name


def settle_prodigy(found: Found, reason: str = "prodigy finds the rate itself and scales it by this") -> None:
    """A rate that is far too low for prodigy, which is refused here, as 1."""
    name, rate = (found.puts[key].value if key in found.puts else None for key in ("optimizer", "learning_rate"))
    if name == "prodigy" and isinstance(rate, float) and rate < 0.1:
        found.left.append(Left(found.puts["learning_rate"].why, f"1 stands in its place: {reason}"))
        found.put("learning_rate", 1.0, note=f"with prodigy, in place of {rate:g}")


def put_decay(found: Found, optimizer: str, key: str) -> None:
    """The weight decay, or what the optimizer's package has."""
    decay = found.take(key, number, None)
    if decay is not None:
        found.put("weight_decay", decay, key)
    elif turns.DECAY[optimizer] != 0.01:
        found.put("weight_decay", turns.DECAY[optimizer], note=f"their default with {optimizer}")


def leave_options(found: Found, before: str, same: dict[str, str]) -> None:
    """Options of an optimizer: `same` are those that it has here."""
    for key, value in list(found.values.items()):
        name = key.removeprefix(before)
        if key.startswith(before) and key not in found.taken:
            if re.sub(r"[\s()\[\]]", "", str(value)).lower().replace("e-08", "e-8") == same.get(name):
                found.taken.add(key)
            else:
                found.leave(key, "an optimizer has its package's own settings here")
