"""The words of a whole set: in every caption, in one only, misspelt, and the trigger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.check.tags import parts, words
from lora_scripts.data.findings import Finding
from lora_scripts.families.clip.tokenizer import clip_counter
from lora_scripts.units import listed

FEW = 5
"""Captions. In a smaller set it says nothing that a word stands in all of them, or in one."""
GUESS = 0.8
"""The share of captions that must begin alike before their beginning is taken for the trigger."""
MOST_TOLD = 30
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at behind beside between but by for from has have her his in inside into is it its near of "
        "off on onto or out outside over some that the their there this through to two under up while who with without",
    )
)
_FIRST_IDEOGRAM = "\u2e80"  # from here on words are not parted by blanks
_ENDINGS = re.compile(r"(s|es|d|ed|r|er|ers|ing|ings|y|ly|n|en|al|ic|ish|less|ness|'s|’s)?")


@dataclass(frozen=True)
class Captioned:
    """One picture's caption, and where it stands."""

    name: str
    text: str
    source: str | None = None
    """As "metadata.csv:3"."""


def content_words(text: str) -> set[str]:
    """The words that say something."""
    return {word for word in words(text) if word not in _STOP}


def has_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words, in any case."""
    phrase, text = phrase.casefold(), text.casefold()
    return phrase in text and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def common_and_single(captions: Sequence[Captioned], trigger: Sequence[str]) -> list[Finding]:
    """What every caption says, and what one only does. Neither is a fault: both are good to know."""
    if len(captions) < FEW:
        return []
    counts = Counter(word for caption in captions for word in content_words(caption.text))
    own = {part for word in trigger for part in words(word)}
    findings = []
    everywhere = sorted(word for word, count in counts.items() if count == len(captions) and word not in own)
    if everywhere:
        told = listed(everywhere, MOST_TOLD)
        message = f"in every caption: {told}. What these words mean will be tied to the LoRA's trigger"
        mend = (
            "leave out of the captions what the LoRA shall always do by itself, a style for example; keep the trigger"
        )
        findings.append(Finding("words_in_every_caption", "note", (), message, mend))
    once = sorted(word for word, count in counts.items() if count == 1 and len(word) > 1 and word < _FIRST_IDEOGRAM)
    if once:
        message = f"{len(once)} of {len(counts)} words stand in one caption only: {listed(once, MOST_TOLD)}"
        findings.append(Finding("words_in_one_caption", "note", (), message, "look for misspelt ones"))
    return findings


def misspelt(captions: Sequence[Captioned]) -> list[Finding]:
    """Rare words that are a slip away from a common one of this set, and that CLIP has no token for.

    CLIP's 49,408 tokens hold the words that people write often, so "mouse" is never taken for a misspelt "house".
    """
    used = [set(words(caption.text)) for caption in captions]
    counts = Counter(word for one in used for word in one if word.isalpha() and word < _FIRST_IDEOGRAM)
    common: dict[str, list[str]] = {}
    for word, count in counts.items():
        if count >= 3:
            common.setdefault(word[0], []).append(word)
    findings = []
    for word in sorted(word for word, count in counts.items() if count <= 2 and len(word) >= 5):
        meant = [other for other in common.get(word[0], ()) if counts[other] >= 4 * counts[word] and _slip(word, other)]
        if not meant or _is_known(word):
            continue
        best = max(meant, key=lambda other: counts[other])
        holders = [caption for caption, one in zip(captions, used, strict=True) if word in one]
        message = f'"{word}" may be a misspelt "{best}", which stands in {counts[best]} captions'
        files = tuple(caption.name for caption in holders)
        mend = f'write "{best}", if that is meant'
        findings.append(Finding("misspelt_word", "warning", files, message, mend, 0.8, holders[0].source))
    return findings


def _is_known(word: str) -> bool:
    return len(clip_counter().encode(word).ids) == 1


def _slip(word: str, other: str) -> bool:
    """Whether one is the other with one letter wrong, missing, doubled or swapped (two from nine letters on)."""
    short, long = sorted((word, other), key=len)
    if long.startswith(short) and _ENDINGS.fullmatch(long[len(short) :]):
        return False
    return 0 < edits(word, other) <= (2 if len(short) >= 9 else 1)


def edits(a: str, b: str) -> int:
    """Optimal string alignment distance (Damerau 1964): insertions, deletions, substitutions, swaps of neighbours."""
    if abs(len(a) - len(b)) > 2:
        return 3
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def guess_trigger(captions: Sequence[Captioned]) -> tuple[str, ...]:
    """The first tag, or else the first word, that most captions begin with; none if they begin differently."""
    if len(captions) < FEW:
        return ()
    for first in (
        [pieces[0].casefold() for caption in captions if len(pieces := parts(caption.text)) > 1],
        [row[0] for caption in captions if (row := words(caption.text))],
    ):
        for begin, count in Counter(first).most_common(1):
            if count < GUESS * len(captions) or begin in _STOP:
                continue
            if sum(has_phrase(caption.text, begin) for caption in captions) >= GUESS * len(captions):
                return (begin,)  # and no part of a word: "c" of "c1", "c2" …
    return ()


def trigger_coverage(captions: Sequence[Captioned], trigger: Sequence[str]) -> list[Finding]:
    """The captions without a trigger: the given ones, or the beginning that most captions share."""
    wanted = trigger or guess_trigger(captions)
    if not wanted:
        return []
    without = [caption for caption in captions if not any(has_phrase(caption.text, word) for word in wanted)]
    if not without:
        return []
    share = f"{len(captions) - len(without)} of {len(captions)} captions"
    files, source = tuple(caption.name for caption in without), without[0].source
    if trigger:
        message = f'the trigger "{", ".join(trigger)}" stands in {share} only'
        return [Finding("trigger_missing", "warning", files, message, "put it first in each caption", None, source)]
    message = f'"{wanted[0]}" stands in {share}, and most begin with it'
    mend = "if it is the trigger, put it into the others too; else name the trigger with --trigger"
    return [Finding("trigger_missing", "note", files, message, mend, 0.5, source)]
