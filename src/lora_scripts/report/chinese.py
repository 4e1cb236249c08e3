"""Chinese beside English: every page holds both; the browser's language decides at first, then the button.

The words stand in the catalogue of `lora_scripts.chinese`. What a person wrote (captions, prompts, names) is never
looked up: it stands in elements with translate="no", as HTML has it.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from lora_scripts.chinese.catalogue import translated

MARK = "<!--languages-->"
"""In a template: where the page's Chinese goes."""
ALWAYS = ("Copy", "Copied")
"""What only scripts write."""
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
