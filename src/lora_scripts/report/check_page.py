"""One self-contained HTML page about a data set: every finding with its pictures, and what the buckets cut away."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lora_scripts.data.findings import Finding, Severity

from .parts import asset, copyable, document, facts, grouped, section

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MOST_THUMBNAILS = 8
"""Pictures beside one finding; the names of the others are listed."""
OPEN = 6
"""Findings of one kind that are shown before one asks for the rest."""


@dataclass(frozen=True)
class ShownPicture:
    """One picture of the set, as the page shows it."""

    name: str
    size: tuple[int, int] | None
    """(width, height) in pixels; None if it cannot be read."""
    thumbnail: bytes
    """JPEG, PNG or WebP; empty if there is none."""
    caption: str
    bucket: tuple[int, int] | None = None
    """The size at which it is trained."""
    kept: tuple[float, float, float, float] | None = None
    """What the bucket keeps: left, top, width and height as shares of the picture."""

    @property
    def lost(self) -> float:
        """The share of the picture that is cut away, 0 … 1."""
        return 0.0 if self.kept is None else 1 - self.kept[2] * self.kept[3]


@dataclass(frozen=True)
class CheckData:
    """Everything on the page."""

    name: str
    """Of the data set."""
    verdict: str
    """In one line."""
    facts: Sequence[tuple[str, str]]
    findings: Sequence[Finding]
    """The worst first."""
    pictures: Sequence[ShownPicture]
    done: Sequence[str] = ()
    """What --fix did, line by line."""
    command: str = ""
    """To mend what can be mended; empty if that is done, or nothing."""


def write_check_page(path: Path, data: CheckData, write: Callable[[Path, str], None]) -> None:
    """Writes the page to `path` with `write`, the project's one way of writing a text file."""
    write(path, render(data))


def render(data: CheckData) -> str:
    """The whole page as HTML."""
    index = {picture.name: number for number, picture in enumerate(data.pictures)}
    parts = [_hero(data), _done(data.done), _findings(data, index), _pictures(data)]
    styles = [asset("page.css"), asset("check.css"), *map(_image_rule, range(len(data.pictures)), data.pictures)]
    script = asset("copy.js") + asset("check.js")
    return document(f"{data.name} · data set", parts, styles, script)


def title(kind: str) -> str:
    """A kind as a heading: "Near duplicate" for "near_duplicate"."""
    words = kind.replace("_", " ").replace("jpeg", "JPEG")
    return words[:1].upper() + words[1:]


def _image_rule(number: int, picture: ShownPicture) -> str:
    """The picture stands on the page once, as a background, however often it is shown."""
    if not picture.thumbnail:
        return ""
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png"}
    kind = kinds.get(picture.thumbnail[:2], "webp")
    coded = base64.b64encode(picture.thumbnail).decode("ascii")
    return f".t{number} {{ background-image: url(data:image/{kind};base64,{coded}); }}\n"


def _hero(data: CheckData) -> str:
    counts = Counter(finding.severity for finding in data.findings)
    worst = next((severity for severity in SEVERITIES if counts[severity]), "fine")
    head = f'<h1>{escape(data.name).replace("_", "_<wbr>")}</h1><p class="verdict {worst}">{escape(data.verdict)}</p>'
    if data.command:
        head += f"<p>To mend what can be mended without losing anything:</p>{copyable(data.command)}"
    return f'<header class="alone"><div class="title">{head}</div>{facts(data.facts)}</header>'


def _done(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    body = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return section("Mended", "What --fix has done. No picture was changed.", f'<ul class="done">{body}</ul>')


def _findings(data: CheckData, index: Mapping[str, int]) -> str:
    if not data.findings:
        return ""
    kinds = grouped((finding.kind, finding) for finding in data.findings)
    counts = Counter(finding.severity for finding in data.findings)
    severities = "".join(
        _chip("severity", severity, severity + ("s" if counts[severity] > 1 else ""), counts[severity])
        for severity in SEVERITIES
        if counts[severity]
    )
    each = "".join(_chip("kind", kind, title(kind), len(found)) for kind, found in kinds.items())
    head = (
        '<div class="head"><h2>Findings</h2><p>The worst first. Press one or more to see only those.</p>'
        f'<div class="filters" hidden><div class="chips">{severities}</div><div class="chips">{each}</div>'
        '<label>Picture <input type="search" placeholder="part of a name"></label>'
        '<p class="none" hidden>Nothing matches. <button type="button">Show all</button></p></div></div>'
    )
    body = "".join(_group(kind, found, data.pictures, index) for kind, found in kinds.items())
    return f'<section class="findings">{head}<div>{body}</div></section>'


def _chip(key: str, value: str, label: str, count: int) -> str:
    return (
        f'<button type="button" class="chip" data-{key}="{escape(value)}" aria-pressed="false">'
        f"{escape(label)} <span>{count}</span></button>"
    )


def _group(kind: str, found: Sequence[Finding], pictures: Sequence[ShownPicture], index: Mapping[str, int]) -> str:
    mends = {finding.mend for finding in found}
    shared = next(iter(mends)) if len(mends) == 1 and len(found) > 1 else None
    cards = [_card(finding, pictures, index, mend=finding.mend != shared) for finding in found]
    body = f'<div class="cards">{"".join(cards[:OPEN])}</div>'
    if len(cards) > OPEN:
        more = f'<summary>{len(cards) - OPEN} more</summary><div class="cards">{"".join(cards[OPEN:])}</div>'
        body += f"<details>{more}</details>"
    note = f'<p class="mend">{escape(shared)}</p>' if shared else ""
    count = f' <span class="soft">{len(found)}</span>' if len(found) > 1 else ""
    return f'<div class="group" data-kind="{escape(kind)}"><h3>{escape(title(kind))}{count}</h3>{note}{body}</div>'


def _card(finding: Finding, pictures: Sequence[ShownPicture], index: Mapping[str, int], *, mend: bool) -> str:
    known = [name for name in finding.files if name in index]
    shown = known[:MOST_THUMBNAILS]
    thumbs = "".join(_thumb(pictures[index[name]], index[name]) + _name(name) + "</figure>" for name in shown)
    others = [name for name in finding.files if name not in shown]
    rest = (
        f"<details><summary>{len(others)} more</summary><p>{escape(', '.join(others))}</p></details>" if others else ""
    )
    marks = [f'<span class="mark">{finding.severity}</span>']
    if finding.sure is not None:
        marks.append(f'<span class="soft">{finding.sure:.0%} sure</span>')
    if finding.source:
        marks.append(f'<span class="source">{escape(finding.source)}</span>')
    text = f"<p>{escape(finding.message)}</p>" + (f'<p class="mend">{escape(finding.mend)}</p>' if mend else "")
    row = f'<div class="row">{thumbs}</div>' if thumbs else ""
    names = escape("\n".join(finding.files).lower())
    return (
        f'<article class="finding {finding.severity}" data-severity="{finding.severity}" data-names="{names}">'
        f'<div class="text"><p class="marks">{"".join(marks)}</p>{text}{rest}</div>{row}</article>'
    )


def _thumb(picture: ShownPicture, number: int, *, crop: bool = False) -> str:
    """The opening of a figure and the picture; with `crop`, what the bucket cuts away is shaded."""
    width, height = picture.size or (1, 1)
    figure = f'<figure style="--ratio: {width / height:.4f}">'
    if not picture.thumbnail:
        return f'{figure}<span class="frame"><span class="thumb lost">no picture</span></span>'
    kept = ""
    if crop and picture.kept and picture.lost > 0.001:
        left, top, across, down = (f"{100 * share:.2f}%" for share in picture.kept)
        kept = f'<i style="left: {left}; top: {top}; width: {across}; height: {down}"></i>'
    label = escape(picture.name)
    thumb = f'<span class="thumb t{number}" role="img" aria-label="{label}">{kept}</span>'
    return f'{figure}<span class="frame">{thumb}</span>'


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}\u00a0×\u00a0{size[1]}"  # never broken at the ×


def _name(name: str) -> str:
    return f'<figcaption title="{escape(name)}">{escape(name)}</figcaption>'


def _pictures(data: CheckData) -> str:
    found: dict[str, Severity] = {}
    for finding in reversed(data.findings):  # the worst is told last, and stays
        found |= dict.fromkeys(finding.files, finding.severity)
    cells = []
    for number, picture in enumerate(data.pictures):
        size = _size(picture.size) if picture.size else "cannot be read"
        if picture.bucket and picture.bucket != picture.size:
            size += f" → {_size(picture.bucket)}"
        lost = f' <b class="cut">−{picture.lost:.0%}</b>' if picture.lost >= 0.005 else ""
        worst = found.get(picture.name)
        mark = f'<span class="dot {worst}" title="{worst}"></span>' if worst else ""
        cells.append(
            _thumb(picture, number, crop=True)
            + f'<figcaption>{mark}<b>{escape(picture.name)}</b><span class="size">{size}{lost}</span>'
            + f'<span class="said">{escape(picture.caption)}</span></figcaption></figure>'
        )
    note = "As they will be trained: size → bucket. What a bucket cuts away is shaded, with its share of the picture."
    return section(f"All {len(data.pictures)} pictures", note, f'<div class="grid">{"".join(cells)}</div>')
