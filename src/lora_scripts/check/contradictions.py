"""Captions that speak against each other, or against themselves. Small tables, and silence in doubt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lora_scripts.check.tags import parts
from lora_scripts.check.vocabulary import Captioned, content_words, has_phrase
from lora_scripts.data.findings import Finding

_Group = frozenset[str]


def _group(text: str) -> _Group:
    return frozenset(text.split(", "))


OPPOSITES: tuple[tuple[_Group, _Group], ...] = (
    (_group("day, daytime, at day"), _group("night, nighttime, at night")),
    (_group("indoors, indoor"), _group("outdoors, outdoor")),
    (_group("summer"), _group("winter")),
    (_group("sunny, clear sky"), _group("overcast, cloudy sky")),
    (_group("monochrome, greyscale, grayscale, black and white"), _group("colorful, colourful, vivid colors")),
    (_group("eyes open, open eyes"), _group("eyes closed, closed eyes")),
    (_group("mouth open, open mouth"), _group("mouth closed, closed mouth")),
    (_group("close-up, closeup, close up"), _group("full body, wide shot, long shot")),
    (_group("solo, 1girl, one girl"), _group("2girls, 3girls, multiple girls, two girls")),
    (_group("solo, 1boy, one boy"), _group("2boys, 3boys, multiple boys, two boys")),
    (_group("no humans, nobody"), _group("solo, 1girl, 1boy, 2girls, 2boys, multiple girls, multiple boys")),
)
IN_SENTENCES = 3
"""So many of them, from the first on, are looked for inside sentences too; the others only as whole tags."""
_BOTH_MEANT = re.compile(
    r"\b(and|or|to|into|versus|vs|half|between|through|window|doorway|turning|split|collage|not|no|without)\b"
)
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("car", "automobile", "auto"),
    ("airplane", "aeroplane", "plane"),
    ("bicycle", "bike"),
    ("motorcycle", "motorbike"),
    ("sofa", "couch"),
    ("television", "tv"),
    ("photo", "photograph"),
    ("grey", "gray"),
    ("colour", "color"),
    ("colourful", "colorful"),
    ("child", "kid"),
    ("street light", "street lamp", "streetlight", "streetlamp"),
    ("skyscraper", "high-rise", "highrise"),
    ("nighttime", "night time", "at night"),
    ("close-up", "closeup", "close up"),
    ("monochrome", "black and white"),
    ("1girl", "one girl", "a girl"),
    ("1boy", "one boy", "a boy"),
    ("sunset", "sundown"),
    ("sneakers", "trainers"),
    ("pants", "trousers"),
    ("glasses", "spectacles", "eyeglasses"),
)
ALIKE = 0.15
"""Captions of one picture that share fewer words than this (Jaccard) are about different things."""


def _opposed(one: str, other: str, *, same: bool) -> tuple[str, str] | None:
    """A word of `one` and its opposite in `other`; with `same` the two are one caption."""
    left, right = ({part.casefold() for part in parts(text)} for text in (one, other))
    for index, pair in enumerate(OPPOSITES):
        for first, second in (pair, pair[::-1]) if not same else (pair,):
            if (a := sorted(first & left)) and (b := sorted(second & right)):
                return a[0], b[0]
            if index >= IN_SENTENCES or (same and _BOTH_MEANT.search(one.casefold())):
                continue
            a = [phrase for phrase in sorted(first) if has_phrase(one, phrase)]
            b = [phrase for phrase in sorted(second) if has_phrase(other, phrase)]
            unmixed = same or not (_any(second, one) or _any(first, other))
            if a and b and unmixed:
                return a[0], b[0]
    return None


def _any(phrases: _Group, text: str) -> bool:
    return any(has_phrase(text, phrase) for phrase in phrases)


def within(captions: Iterable[Captioned]) -> list[Finding]:
    """Captions that say a thing and its opposite."""
    findings = []
    for caption in captions:
        if pair := _opposed(caption.text, caption.text, same=True):
            message = f'says both "{pair[0]}" and "{pair[1]}"'
            mend = "keep what is true"
            findings.append(
                Finding("caption_contradiction", "warning", (caption.name,), message, mend, 0.7, caption.source)
            )
    return findings


def synonyms(captions: Sequence[Captioned]) -> list[Finding]:
    """One thing called by two names, in different captions."""
    findings = []
    for group in SYNONYMS:
        holders: dict[str, list[Captioned]] = {term: [] for term in group}
        for caption in captions:
            used = [term for term in group if has_phrase(caption.text, term) or has_phrase(caption.text, term + "s")]
            if len(used) == 1:  # a caption with both may well speak of two things
                holders[used[0]].append(caption)
        ranked = sorted((term for term in group if holders[term]), key=lambda term: -len(holders[term]))
        if len(ranked) > 1:
            counts = ", ".join(f'"{term}" in {len(holders[term])}' for term in ranked)
            rarer = [caption for term in ranked[1:] for caption in holders[term]]
            message = f"two names for one thing: {counts}"
            mend = f'if they mean the same, write "{ranked[0]}" everywhere'
            files = tuple(caption.name for caption in rarer)
            findings.append(Finding("synonyms", "note", files, message, mend, 0.6, rarer[0].source))
    return findings


def between(clusters: Iterable[Sequence[str]], captions: Mapping[str, Captioned]) -> list[Finding]:
    """Pictures that look the same, of which the captions say different things. `clusters`: names of such pictures."""
    findings = []
    for cluster in clusters:
        said = [captions[name] for name in cluster if name in captions and captions[name].text]
        for other in said[1:]:
            one = said[0]
            opposed = _opposed(one.text, other.text, same=False)
            if opposed:
                message = f'the same picture, but "{opposed[0]}" in one caption and "{opposed[1]}" in the other'
            elif _share(one.text, other.text) < ALIKE:
                message = f'the same picture, but "{one.text}" and "{other.text}" have hardly a word in common'
            else:
                continue
            mend = "keep what is true, or one of the two pictures"
            findings.append(
                Finding("captions_disagree", "warning", (one.name, other.name), message, mend, 0.8, one.source)
            )
    return findings


def _share(one: str, other: str) -> float:
    a, b = content_words(one), content_words(other)
    return len(a & b) / len(a | b) if a and b else 1.0
