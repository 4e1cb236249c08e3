"""Findings as a few lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lora_scripts.data.findings import Finding, Severity
from lora_scripts.units import listed, number_of, typed

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
NAMES = 3
"""File names in one line."""
LONGEST = 160
"""Letters of a message; the page has all of it."""


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; findings of one kind together, the surest first."""
    worst: dict[str, int] = {}
    for finding in findings:
        rank = SEVERITIES.index(finding.severity)
        worst[finding.kind] = min(rank, worst.get(finding.kind, rank))
    place = {kind: number for number, kind in enumerate(worst)}

    def key(finding: Finding) -> tuple[int, int, int, float]:
        sure = 1.0 if finding.sure is None else finding.sure
        return worst[finding.kind], place[finding.kind], SEVERITIES.index(finding.severity), -sure

    return sorted(findings, key=key)


def counted(findings: Sequence[Finding]) -> str:
    """ "2 errors, 1 warning"; "nothing wrong" for none."""
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(number_of(counts[s], s) for s in SEVERITIES if counts[s]) or "nothing wrong was found"


def summary(pictures: int, captioned: int, findings: Sequence[Finding], unread: int = 0) -> str:
    """A data set in one line; `unread`: pictures whose caption cannot be read."""
    broken = f", {unread} with one that cannot be read" if unread else ""
    return f"{number_of(pictures, 'picture')}, {captioned} with a caption{broken}: {counted(findings)}"


def lines(findings: Sequence[Finding]) -> list[str]:
    """One line for each kind: how many, the worst one in words, names, the mend."""
    groups: dict[str, list[Finding]] = {}
    for finding in ordered(findings):
        groups.setdefault(finding.kind, []).append(finding)
    return [f"{group[0].severity}: {_line(group)}" for group in groups.values()]


def _line(group: Sequence[Finding]) -> str:
    first = group[0]
    named = ("", first.source, *first.files)
    places = (place for finding in group[1:] for place in finding.files or (finding.source or "",))
    others = [place for place in dict.fromkeys(places) if place not in named]
    head = f"{first.kind.replace('_', ' ')} ({len(group)}): " if len(group) > 1 else ""
    where = few(first.files)
    if first.source:
        where += f" ({first.source})" if where else first.source
    text = f"{where}: {shortened(first.message)}" if where else shortened(first.message)
    also = f"; also {few(others)}" if others else ""
    return f"{head}{text}; {first.mend}{also}"


def check_command(words: Sequence[str]) -> str:
    """What to type to look at the data."""
    return typed(["lora-scripts", "check", *words])


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return listed(names, NAMES)


def shortened(text: str) -> str:
    """At most `LONGEST` letters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
