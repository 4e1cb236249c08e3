"""One self-contained HTML page about a data set: every finding, with its pictures and what the buckets cut away, or
with the lengths of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.data.findings import Finding, Severity
from lora_scripts.report.environment import fill

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
    unread: bool = False
    """That its caption is there, and cannot be read."""

    @property
    def lost(self) -> float:
        """The share of the picture that is cut away, 0 … 1."""
        return 0.0 if self.kept is None else 1 - self.kept[2] * self.kept[3]

    @property
    def ratio(self) -> float:
        """Width over height; 1 where nobody knows."""
        return self.size[0] / self.size[1] if self.size else 1.0


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram."""

    label: str
    count: int
    share: float
    """Of the longest bar, 0 … 1."""


@dataclass(frozen=True)
class ShownRecord:
    """One record of a language model, as the page shows it."""

    place: str
    text: str


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
    pictures: Sequence[ShownPicture] = ()
    mended: Sequence[str] | None = None
    """What --fix did, line by line; None without it."""
    command: str = ""
    """To mend what can be mended; empty if that is done, or nothing."""
    language: str = "auto"
    """In which the page opens: en, zh, or the browser's."""
    set_aside: str = ""
    """To set aside the pictures that nothing mends; empty as long as there is something to mend."""
    bars: Sequence[Bar] = ()
    """How long records are."""
    unit: str = ""
    """Of the bars: "tokens" or "words"."""
    records: Sequence[ShownRecord] = ()


@dataclass(frozen=True)
class Group:
    """The findings of one kind."""

    kind: str
    findings: Sequence[Finding]

    @property
    def title(self) -> str:
        """The kind as a heading: "Near duplicate" for "near_duplicate"."""
        words = self.kind.replace("_", " ").replace("jpeg", "JPEG")
        return words[:1].upper() + words[1:]

    @property
    def mend(self) -> str:
        """Of several findings the one that all have; it is told once. Else empty."""
        mends = {finding.mend for finding in self.findings}
        return mends.pop() if len(mends) == 1 and len(self.findings) > 1 else ""


def render(data: CheckData) -> str:
    """The whole page as HTML."""
    counts = Counter(finding.severity for finding in data.findings)
    return fill(
        "check.html",
        check=data,
        language=data.language,
        index={picture.name: number for number, picture in enumerate(data.pictures)},
        worst=next((severity for severity in SEVERITIES if counts[severity]), "fine"),
        severities=[(severity, counts[severity]) for severity in SEVERITIES if counts[severity]],
        groups=_groups(data.findings),
        marks=_marks(data.findings),
        most_thumbnails=MOST_THUMBNAILS,
        open=OPEN,
    )


def _groups(findings: Sequence[Finding]) -> list[Group]:
    """By kind, in the order of their first appearance."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    return [Group(kind, members) for kind, members in kinds.items()]


def _marks(findings: Sequence[Finding]) -> dict[str, Severity]:
    """Name of a picture -> the worst that was found in it."""
    worst: dict[str, Severity] = {}
    for finding in findings:  # the worst comes first, and stays
        for name in finding.files:
            worst.setdefault(name, finding.severity)
    return worst
