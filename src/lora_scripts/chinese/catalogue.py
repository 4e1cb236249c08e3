"""English texts in Chinese, by tables of texts with holes.

The words stand beside this file, English -> Chinese, in groups: `zh.json` of pages, which data and runs share,
`faults.json`, `lines.json` and `help.json` of the terminal, and `configs.json` of the comments that `new` writes.
`{name}` in them stands for any text, which is looked up by itself unless it is a person's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

TABLES = ("zh.json", "faults.json", "lines.json", "help.json", "configs.json")
_OWN = frozenset({"list", "names", "words", "name", "file", "word"})
"""Holes with names that a person gave, also numbered (file2)."""
_TYPED = frozenset({"text", "command"})
"""Holes with anything that a person wrote, or types; so is what stands in quotes."""
_KINDS = {"count": r"[\d.,]+", "one": r"\S*[^\s:]"}
"""Holes that take a number alone, or one word that is a person's, and no label with its colon: "{count} pictures" is no
pattern for every text that ends so."""
_FOREIGN = frozenset({"why", "told", "start", "types", "programs", "path"})
"""Holes with what other programs say, or with names: looked up, but English where it is not known."""
_PROSE = re.compile(r"(?:\ba|[a-z]{2,}[,:;]?) [a-z]{2,}")
"""English. What no other hole may hold untold, for half of each language is worse than English."""
_JOINT = re.compile("[:;] ")
"""What parts one statement from the next: no name holds one."""
_SPLIT = {"parts": (", ", "，"), "choices": (" or ", " 或 "), "both": (" and ", "、")}
"""Holes of several texts, each looked up by itself, and what stands between two of them."""
_HAN, _LATIN = re.compile("[\u4e00-\u9fff]"), re.compile("[A-Za-z0-9%]")
_LIST = re.compile(r"(.*) and (\d+) more", re.DOTALL)


def translated(text: str, *, apart: bool = False) -> str | None:
    """A text in Chinese; None if it is not known. A capital at its start, a full stop at its end, and several sentences
    are no other text. `apart`: no hole may take in a semicolon as it is, for what follows may be known by itself."""
    if (found := _exact(text)) is not None:
        return found
    sentences = re.split(r"(?<=[.;]) (?=[A-Z])", text)  # before a hole of one takes in the next
    parts = [translated(one) for one in sentences] if len(sentences) > 1 else []
    if parts and all(parts):
        return "".join(_ended(part.rstrip(".")) for part in parts if part)
    if (found := _filled_in(text, apart)) is not None:
        return found
    bare = text.removesuffix(".")
    found = (_exact(bare) or _filled_in(bare, apart)) if bare != text else None
    return found and _ended(found)


def _ended(text: str) -> str:
    return text if text.endswith(("。", "！", "？", "：")) else f"{text}。"


def _exact(text: str) -> str | None:
    """Of a text without holes."""
    exact, _ = _words()
    forms = (text, text[:1].lower() + text[1:], text[:1].upper() + text[1:])
    return next((exact[form] for form in forms if form in exact), None)


def _filled_in(text: str, apart: bool) -> str | None:
    """Of a text with holes."""
    _, patterns = _words()
    lower = text[:1].lower() + text[1:]
    for form in dict.fromkeys((text, lower)):
        for pattern in patterns:
            if (found := pattern.match(form)) is not None:
                own = {name: value if pattern.quotes(name) else _inside(name, value) for name, value in found.items()}
                swallowed = apart and any("; " in value and own[name] == value for name, value in found.items())
                if None not in own.values() and not swallowed:
                    return _filled(pattern.chinese, own)
    return None


def _filled(chinese: str, own: Mapping[str, str | None]) -> str:
    """With a space where a figure or a Latin word comes to stand beside a sign, and one 请 of two mends."""

    def put(hole: re.Match[str]) -> str:
        value = own[hole[1]] or ""
        before = " " if _HAN.search(chinese[: hole.start()][-1:]) and _LATIN.match(value) else ""
        after = " " if _HAN.match(chinese[hole.end() :]) and _LATIN.match(value[-1:]) else ""
        return f"{before}{value}{after}"

    return re.sub(r"\{(\w+)\}", put, chinese).replace("或请", "或")


def _inside(name: str, value: str) -> str | None:
    """What stands in a hole, which may be a number, or a name that is the same in Chinese. None for English."""
    kind = _kind(name)
    if kind in _TYPED or kind in _KINDS:
        return value
    if kind in _OWN:
        return None if _JOINT.search(value) else _LIST.sub(r"\1 及另外 \2 个", value) if kind == "list" else value
    if kind in _SPLIT:
        between, chinese = _SPLIT[kind]
        return chinese.join(map(_measured, value.split(between)))
    found = translated(value) if re.search("[A-Za-z]{2}", value) else value
    if found is None and kind not in _FOREIGN and _PROSE.search(value):
        return None
    return found or value


def _measured(text: str) -> str:
    """One of several: a text, or one with a figure behind it ("LoRA files 24 kB")."""
    what, figure = re.fullmatch(r"(.+?)((?: \d\S* \S+)*)", text, re.DOTALL).groups("")  # type: ignore[union-attr]
    return translated(text) or f"{translated(what) or what}{figure}"


def _kind(name: str) -> str:
    """Of a hole: its name without a number."""
    return name.rstrip("0123456789")


@dataclass(frozen=True)
class _Pattern:
    """A text with holes, and its Chinese."""

    english: str
    chinese: str

    @cached_property
    def parts(self) -> list[str]:
        """Text, hole, text, … text."""
        return re.split(r"\{(\w+)\}", self.english)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        holes = {name: _KINDS.get(_kind(name), ".+?") for name in self.parts[1::2]}
        written = [re.escape(part) if i % 2 == 0 else f"(?P<{part}>{holes[part]})" for i, part in enumerate(self.parts)]
        return re.compile("".join(written), re.DOTALL)

    def match(self, text: str) -> dict[str, str] | None:
        """What stands in its holes. The plain parts are looked for first: few patterns ever become expressions."""
        if not (text.startswith(self.parts[0]) and text.endswith(self.parts[-1])):
            return None
        if not all(part in text for part in self.parts[2:-1:2]):
            return None
        found = self._regex.fullmatch(text)
        return found and found.groupdict()

    def quotes(self, name: str) -> bool:
        """Whether a hole stands in quotes, as what a person wrote does."""
        return f'"{{{name}}}"' in self.english


@cache
def _words() -> tuple[dict[str, str], list[_Pattern]]:
    """(texts without holes, those with holes: the most particular first)."""
    every: dict[str, str] = {}
    for table in TABLES:
        for group in json.loads((files("lora_scripts.chinese") / table).read_text("utf-8")).values():
            every |= group
    exact = {english: chinese for english, chinese in every.items() if "{" not in english}
    holed = sorted((e for e in every if "{" in e), key=lambda e: -len(re.sub(r"\{\w+\}", "", e)))
    return exact, [_Pattern(english, every[english]) for english in holed]
