"""What is found in a config of another trainer: our keys with where each comes from, and what is not carried over."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lora_scripts.adopt.turns import Unlike
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import Faults, UserError

T = TypeVar("T")
Turn = Callable[[Any], Any]
"""A value of theirs as one of ours; ValueError for one of a wrong type, Unlike for one that has no counterpart."""
NOTHING: tuple[object, ...] = (None, "", False, 0, [], {}, "None", "none")
"""Values that leave a setting off."""


class Row(NamedTuple):
    """A setting that has one counterpart."""

    theirs: str
    ours: str
    turn: Turn
    default: object = None
    """What they do where it is not written, as a value of ours, if that is another thing than what we do."""


class Left(NamedTuple):
    """Something that is not carried over."""

    theirs: str
    """As it stands there: "color_aug = true"."""
    reason: str
    """Why, or what stands in its place."""


class Put(NamedTuple):
    """A key of ours."""

    value: object
    theirs: tuple[str, ...]
    """What it comes from, as it stands there,"""
    note: str = ""
    """and what is to be said besides."""

    @property
    def why(self) -> str:
        return ", ".join([*self.theirs, *([self.note] if self.note else [])])


@dataclass
class Found:
    """One config of another trainer on its way to ours."""

    trainer: str
    file: Path
    text: str
    """Of the file, to find lines in."""
    values: dict[str, object]
    """Their keys, of nested ones with dots between, and what stands there."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """Keys that are called otherwise in the file than in `values`."""
    puts: dict[str, Put] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)
    """Settings that are always so here, or decided by the program."""
    off: list[str] = field(default_factory=list)
    """Settings that are not known here, and off."""
    faults: Faults = field(default_factory=Faults)
    taken: set[str] = field(default_factory=set)
    base_words: tuple[str, ...] = ()
    """What the file calls the kind of its base, or what tells it."""
    length: Length = field(default_factory=lambda: Length())

    def take(self, key: str, turn: Callable[[Any], T], default: T) -> T:
        """The value of a key of theirs, turned; `default` where it is not written or left empty."""
        self.taken.add(key)
        value = self.values.get(key)
        if value is None or value == "":
            return default
        try:
            return turn(value)
        except Unlike as unlike:
            self.leave(key, str(unlike))
        except ValueError as error:
            self.fault(self.name(key), str(error))
        return default

    def fault(self, name: str, message: str, hint: str | None = None) -> None:
        """Notes a mistake in the file at a key as it is called there."""
        self.faults.append(UserError(f"{name}: {message}", file=self.file, line=self.line(name), hint=hint))

    def put(self, ours: str, value: object, *theirs: str, note: str = "") -> None:
        """Sets a key of ours; the comment tells those of the keys that it comes from that are written, or that it is
        their default."""
        told = tuple(self.tell(key) for key in theirs if self.has(key))
        if not told and not note:
            note = f"their default ({self.name(theirs[0])})"
        self.puts[ours] = Put(value, told, note)

    def has(self, key: str) -> bool:
        """Whether a key of theirs is written, and not left empty."""
        return self.values.get(key) not in (None, "")

    def usual(self, ours: str, value: object, theirs: str) -> None:
        """Sets a key of ours to what they do where it is not written, if we do another thing then."""
        if value != TrainConfig.model_fields[ours].default:
            self.puts[ours] = Put(value, (), f"their default ({self.name(theirs)})")

    def put_or_usual(self, ours: str, theirs: str, turn: Turn, default: object) -> Any:
        """`put` where it is written, else `usual`; the value in use."""
        value = self.take(theirs, turn, None)
        if value is None:
            self.usual(ours, default, theirs)
            return default
        self.put(ours, value, theirs)
        return value

    def rows(self, rows: Iterable[Row]) -> None:
        """Carries over what has one counterpart."""
        for row in rows:
            value = self.take(row.theirs, row.turn, None)
            if value is not None:
                self.put(row.ours, value, row.theirs)
            elif row.default is not None:
                self.usual(row.ours, row.default, row.theirs)

    def leave(self, key: str, reason: str) -> None:
        """Tells that a key of theirs is not carried over."""
        self.taken.add(key)
        self.left.append(Left(self.tell(key), reason))

    def drop(self, ours: str, reason: str) -> None:
        """Takes a key of ours back that cannot be."""
        put = self.puts.pop(ours)
        self.left.append(Left(put.why, f"{ours}: {reason}"))

    def rest(self, known: Mapping[str, tuple[object, str]], decided: re.Pattern[str]) -> None:
        """Sorts what nobody has taken: known without a counterpart ((their default, the reason)), decided here, not
        known."""
        for key, value in self.values.items():
            if key in self.taken:
                continue
            usual, reason = known.get(key, (None, ""))
            if reason:
                if value not in NOTHING and value != usual:
                    self.leave(key, reason)
            elif decided.fullmatch(key):
                self.decided.append(self.name(key))
            elif value in NOTHING:
                self.off.append(self.name(key))
            else:
                self.leave(key, "is not known here")

    def unsaid(self) -> tuple[str, ...]:
        """Keys that are on and that no comment names: they say nothing beside the others."""
        said = " ".join([*(put.why for put in self.puts.values()), *(left.theirs for left in self.left), *self.decided])
        on = (self.name(key) for key, value in self.values.items() if value not in NOTHING)
        words = set(re.findall(r"[\w.]+", said))
        return tuple(name for name in on if not words.issuperset(re.findall(r"[\w.]+", name)))

    def name(self, key: str) -> str:
        return self.shown.get(key, key)

    def tell(self, key: str) -> str:
        """The key and its value as they stand there, shortened."""
        if key not in self.values:
            return f"{self.name(key)} not written"
        return f"{self.name(key)} = {brief(self.values[key])}"

    def why(self, key: str, default: object) -> str:
        """The key as it stands there, or that it is their default."""
        return self.tell(key) if self.has(key) else f"their default ({self.name(key)}): {default}"

    def line(self, key: str) -> int | None:
        """Of a key in the file, the first where it stands."""
        last = re.escape(re.sub(r"\[\d+\]", "", key).rpartition(".")[2])
        found = re.search(rf"(?<![\w.]){last}[\"']?\s*[:=\s]", self.text)
        return self.text.count("\n", 0, found.start()) + 1 if found else None


@dataclass
class Length:
    """How long a run is and what is counted in its epochs, before anybody has counted pictures."""

    epochs: int | None = None
    epochs_why: str = ""
    steps: int | None = None
    """Optimizer steps of the whole run, where no epochs are said."""
    steps_why: str = ""
    pictures: int | None = None
    """Pictures seen in one epoch, repeats counted, where they are known."""
    class_told: str = ""
    """Where class pictures are named that are seen as often as all others there; empty: there are none."""
    shares: list[tuple[str, float, str]] = field(default_factory=list)
    """(our key, share of the whole run, why)"""
    per_epoch: list[tuple[str, float, str]] = field(default_factory=list)
    """(our key, epochs, why) of keys of ours that count steps"""


def brief(value: object) -> str:
    """A value on a line, shortened."""
    if isinstance(value, float):
        return f"{value:g}"
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else value
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "…"
