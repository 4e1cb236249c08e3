"""The small pieces of HTML that the page is put together from; whatever a person wrote is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import TypeVar

from PIL.Image import Image

Value = TypeVar("Value")

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
"""The browser itself refuses every load from elsewhere."""


def asset(name: str) -> str:
    """The text of a style sheet or script that ships with the package."""
    return (files("lora_scripts.report") / "assets" / name).read_text(encoding="utf-8")


def document(title: str, parts: Iterable[str], styles: Iterable[str], script: str, *, after: str = "") -> str:
    """A whole page: `parts` (HTML, empty ones left out) in its main element, `after` behind it."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{''.join(styles)}</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(part + chr(10) for part in parts if part)}</main>\n"
        f"{after}<script>\n{script}</script>\n</body>\n</html>\n"
    )


def data_uri(image: Image) -> str:
    """The picture itself as an address: PNG or lossless WebP, whichever is smaller; the same pixels either way."""
    kept = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    coded = []
    for kind, options in (("png", {}), ("webp", {"lossless": True, "exact": True, "method": 3})):
        buffer = io.BytesIO()
        kept.save(buffer, kind, **options)
        coded.append((buffer.tell(), kind, buffer.getvalue()))
    _, kind, content = min(coded)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture(image: Image, caption: str, description: str) -> str:
    """A picture that can be enlarged, with a caption below; `description` is its text for those who cannot see it."""
    return (
        f'<figure><button type="button" class="zoom"><img src="{data_uri(image)}" width="{image.width}"'
        f' height="{image.height}" alt="{escape(description)}"></button>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(title: str, note: str, body: str) -> str:
    """A part of the page: heading and note beside the content."""
    return f'<section><div class="head"><h2>{escape(title)}</h2><p>{escape(note)}</p></div><div>{body}</div></section>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Labels and values; nothing for no rows."""
    cells = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in rows)
    return f'<dl class="facts">{cells}</dl>' if rows else ""


def copyable(text: str, *, block: bool = False) -> str:
    """Text to copy; the page's script puts a button beside it."""
    return f'<div class="code{" block" if block else ""}"><pre><code>{escape(text)}</code></pre></div>'


def tag(stem: str, strength: float = 0.8) -> str:
    """What a person writes in a prompt to use the file."""
    return f"<lora:{stem}:{strength:g}>"


def grouped(pairs: Iterable[tuple[str, Value]]) -> dict[str, list[Value]]:
    """Values by key, keys in the order of their first appearance."""
    groups: dict[str, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
