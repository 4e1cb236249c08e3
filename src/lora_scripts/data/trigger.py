"""The word or tag that most captions begin with: what calls a LoRA that was trained on them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_scripts.data.captions import COMMA, tags_of
from lora_scripts.data.listing import Listing
from lora_scripts.units import typed

SHARE = 0.8
"""Of the captions that must begin alike."""
_FEW = 2
# What captions begin with that calls nothing: articles and the like, and the words for a picture itself.
_PLAIN = frozenset({
    "a", "an", "and", "are", "as", "at", "by", "for", "from", "her", "his", "i", "in", "into", "is", "it", "its", "my",
    "of", "on", "or", "our", "over", "she", "he", "some", "that", "the", "their", "there", "these", "they", "this",
    "those", "to", "two", "three", "four", "under", "we", "with", "without", "image", "photo", "photograph", "picture",
    "drawing", "illustration", "painting", "portrait", "render", "screenshot", "sketch", "closeup", "close-up",
    "1girl", "1boy", "solo",
})  # fmt: skip


@dataclass(frozen=True)
class Trigger:
    """What calls a LoRA."""

    words: tuple[str, ...]
    """Each a word or a phrase."""
    captions: int
    """That begin with it, or hold one of them where they were named."""
    of: int
    """Captions."""

    @property
    def phrase(self) -> str:
        """All of them."""
        return ", ".join(self.words)

    def stands_in(self, text: str) -> bool:
        """Whether one of them does."""
        return any(holds(text, word) for word in self.words)

    @property
    def agreement(self) -> str:
        """ "48 of 50": the captions that have it."""
        return f"{self.captions} of {self.of}"


def calling(named: Sequence[str], captions: Sequence[str]) -> Trigger | None:
    """What calls a LoRA of these captions: the words that its maker named, else what they begin with."""
    if not named:
        return trigger_of(captions)
    trigger = Trigger(tuple(named), 0, len(captions))
    return replace(trigger, captions=sum(map(trigger.stands_in, captions)))


def holds(text: str, word: str) -> bool:
    """Whether the word or phrase stands in the text, not as a part of another word; case does not count.

    Chinese has no spaces, so only Latin letters and digits make a longer word of it.
    """
    return re.search(_standing(word), text, re.IGNORECASE) is not None


def without(text: str, words: Sequence[str], instead: str | Sequence[str] = "") -> str:
    """The text with something else in place of the words, as `holds` finds them: the same for all, or for each its own;
    a comma that then parts nothing is left out."""
    texts = [instead] * len(words) if isinstance(instead, str) else instead
    # The longest first: "ann" is no part of "ann lee".
    pairs = sorted(zip(words, texts, strict=True), key=lambda pair: -len(pair[0]))
    any_of_them = "|".join(f"({_standing(word)})" for word, _ in pairs)
    text = re.sub(any_of_them, lambda found: pairs[(found.lastindex or 0) - 1][1], text, flags=re.IGNORECASE)
    text = re.sub(r"\s+", " ", text).strip()
    parts = COMMA.split(text)
    return text if all(part.strip() for part in parts) else ", ".join(tags_of(text))


def _standing(word: str) -> str:
    return rf"(?<![0-9a-z]){re.escape(word)}(?![0-9a-z])"


def label_command(folder: Path, listing: Listing, word: str) -> str:
    """What to type so that the captions of a folder have the word, in the file or files where most of them stand."""
    places = Counter(
        said.file.suffix.lower().lstrip(".") if said.line is None else said.file.as_posix()
        for sources in listing.said.values()
        for said in sources[:1]
    )
    usual = (folder / "metadata.csv").as_posix()
    place = next((place for place, _ in places.most_common(1)), usual)
    where = [] if place == usual else ["--output", place]
    return typed(["lora-scripts", "label", "--input", folder.as_posix(), *where, "--words-only", "--trigger", word])


def trigger_of(captions: Sequence[str]) -> Trigger | None:
    """The first tag (of captions with commas), or else the first word, of most captions, as it is mostly written; None
    where they begin differently, or with what calls nothing. Of captions that are all the same it is the whole.
    """
    if len(captions) >= _FEW and len(whole := {caption.strip() for caption in captions}) == 1 and "" not in whole:
        return Trigger((whole.pop(),), len(captions), len(captions))
    tags = [tag for caption in captions if (tag := COMMA.split(caption)[0].strip()) != caption.strip() and tag]
    words = [caption.split()[0].strip(",.;:，、。；：") for caption in captions if caption.split()]
    for beginnings in (tags, words):
        counts = Counter(beginning.casefold() for beginning in beginnings)
        if not counts:
            continue
        (folded, count), *_ = counts.most_common(1)
        if count >= max(_FEW, SHARE * len(captions)) and folded and not set(folded.split()) <= _PLAIN:
            spelt, _ = Counter(b for b in beginnings if b.casefold() == folded).most_common(1)[0]
            return Trigger((spelt,), count, len(captions))
    return None
