"""Chinese beside English: every page holds both; the browser's language decides at first, then the button.

The words stand in `assets/zh.json`, English -> Chinese, by part of the pages. `{name}` in them stands for any text,
which is looked up by itself unless it is a person's. What a person wrote (captions, prompts, names) is never looked up:
it stands in elements with translate="no", as HTML has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files

MARK = "<!--languages-->"
"""In a template: where the page's Chinese goes."""
ALWAYS = ("Copy", "Copied")
"""What only scripts write."""
_OWN = frozenset({"list", "names", "words", "name", "text", "file", "command", "word"})
"""Holes with what a person wrote, or what is typed; so is what stands in quotes."""
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&'"}
"""What could end a script in HTML, as JSON writes it."""
_ATTRIBUTES = ("aria-label", "placeholder", "title", "alt")
_SILENT = frozenset({"script", "style", "code", "pre", "title"})
_VOID = frozenset({"meta", "link", "img", "input", "br", "line", "polyline", "polygon", "hr"})


def with_chinese(html: str) -> str:
    """The page with its texts in Chinese beside them, as JSON that its script reads."""
    reader = _Texts()
    reader.feed(html)
    found = {text: chinese for text in [*ALWAYS, *reader.texts] if (chinese := translated(text)) is not None}
    told = json.dumps(dict(sorted(found.items())), ensure_ascii=False).translate(_UNSAFE)
    return html.replace(MARK, f'<script type="application/json" id="zh">{told}</script>')


def missing(html: str) -> list[str]:
    """Texts of a page that have no Chinese, for tests: numbers, signs and names of programs aside."""
    reader = _Texts()
    reader.feed(html)
    return [text for text in reader.texts if re.search("[A-Za-z]{2}", text) and translated(text) is None]


def translated(text: str) -> str | None:
    """A text in Chinese; None if it is not known. A capital at its start, a full stop at its end, and several sentences
    are no other text."""
    if (found := _exact(text)) is not None:
        return found
    sentences = re.split(r"(?<=[.;]) (?=[A-Z])", text)  # before a hole of one takes in the next
    parts = [translated(one) for one in sentences] if len(sentences) > 1 else []
    if parts and all(parts):
        return "".join(_ended(part.rstrip(".")) for part in parts if part)
    if (found := _filled_in(text)) is not None:
        return found
    bare = text.removesuffix(".")
    found = (_exact(bare) or _filled_in(bare)) if bare != text else None
    return found and _ended(found)


def _ended(text: str) -> str:
    return text if text.endswith(("。", "！", "？", "：")) else f"{text}。"


def _exact(text: str) -> str | None:
    """Of a text without holes."""
    exact, _ = _words()
    forms = (text, text[:1].lower() + text[1:], text[:1].upper() + text[1:])
    return next((exact[form] for form in forms if form in exact), None)


def _filled_in(text: str) -> str | None:
    """Of a text with holes."""
    _, patterns = _words()
    lower = text[:1].lower() + text[1:]
    for form in dict.fromkeys((text, lower)):
        for english, pattern, chinese in patterns:
            if match := pattern.fullmatch(form):
                own = {
                    name: value if name in _OWN or f'"{{{name}}}"' in english else translated(value) or value
                    for name, value in match.groupdict().items()
                }
                return _filled(chinese, own)
    return None


def _filled(chinese: str, own: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda hole: own[hole[1]], chinese)


@cache
def _words() -> tuple[dict[str, str], list[tuple[str, re.Pattern[str], str]]]:
    """(texts without holes, those with holes: the most particular first)."""
    groups = json.loads((files("lora_scripts.report") / "assets" / "zh.json").read_text("utf-8"))
    every = {english: chinese for group in groups.values() for english, chinese in group.items()}
    exact = {english: chinese for english, chinese in every.items() if "{" not in english}
    holed = sorted((e for e in every if "{" in e), key=lambda e: -len(re.sub(r"\{\w+\}", "", e)))
    return exact, [(english, re.compile(_pattern(english), re.DOTALL), every[english]) for english in holed]


def _pattern(english: str) -> str:
    parts = re.split(r"\{(\w+)\}", english)
    return "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>.+?)" for i, part in enumerate(parts))


class _Texts(HTMLParser):
    """The texts of a page that may be told in another language, each once, blanks made one."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, None] = {}
        self.open: list[tuple[str, bool]] = []
        """Elements, and whether what is in them stays as it is."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        silent = (bool(self.open) and self.open[-1][1]) or tag in _SILENT or given.get("translate") == "no"
        if tag not in _VOID:
            self.open.append((tag, silent))
        if not silent:
            for name in _ATTRIBUTES:
                self._keep(given.get(name) or "")

    def handle_endtag(self, tag: str) -> None:
        while self.open and tag not in _VOID and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not (self.open and self.open[-1][1]):
            self._keep(data)

    def _keep(self, text: str) -> None:
        if plain := " ".join(text.split()):
            self.texts[plain] = None
