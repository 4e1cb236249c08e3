"""What is done to the words of one caption, from text to text. Pure: no files, no models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_scripts.data.captions import COMMA, tags_of
from lora_scripts.label.conventions import CUT, cut_phrases, leaves_out

Kind = Literal["sentence", "tags"]

_LETTER = r"[^\W\u2e80-\uffff]"  # Chinese and Japanese write no blanks, so their words have no edges to look for
_SUBJECT = re.compile(r"\d+\+?(?:girl|boy|other)s?|multiple (?:girls|boys|others)|solo|no humans", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:a|an|the)\s", re.IGNORECASE)
_SMALL = (
    r"(?:with|wearing|having|holding|has|have|in|on|at|of|by|near|from|and|or|a|an|the|her|his|its|their|is|are|to)"
)
_TRAILING = re.compile(rf"(?:[\s,;:]+{_SMALL})*[\s,;:]*$", re.IGNORECASE)
_VERB = r"(?:\w+ing|is|are|was|were|has|wears|holds|stands|sits|looks|smiles|walks|runs|poses|appears)\b"


@dataclass(frozen=True)
class WordRules:
    """What to do to every caption, in this order."""

    purpose: Literal["style", "character"] | None = None
    """What the LoRA shall learn by itself is left out, by `conventions`."""
    replace: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    """In tags the tag of that name, in sentences the words wherever they stand."""
    whitelist: tuple[str, ...] = ()
    """The only tags that stay; nothing: all."""
    trigger: str = ""
    prefix: str = ""
    append: str = ""
    max_tokens: int | None = None
    """What the caption may have as a whole; its middle is shortened, at a tag or word."""

    def __bool__(self) -> bool:
        return self != WordRules()


def apply_rules(text: str, rules: WordRules, kind: Kind, count: Callable[[str], int]) -> str:
    """`text` by `rules`; by the same rules again, it stays as it is. `count` gives the number of CLIP's tokens.

    Empty where nothing remains and the rules add nothing.
    """
    text = without_own(" ".join(text.replace(CUT, " ").split()), rules, kind)
    if kind == "tags":
        units = _tags(text, rules)
        return _shorten(units, rules, kind, count)
    if rules.purpose:
        text = close_gaps(cut_phrases(text, rules.purpose))
    text = _replace(text, rules.replace)
    for words in rules.remove:
        text = close_gaps(_pattern(words).sub(f" {CUT} ", text))
    return _shorten(text.split(), rules, kind, count)


def looks_like_tags(text: str) -> bool:
    """Whether a caption is tags rather than sentences, from the shape of its pieces between commas."""
    pieces = tags_of(text)
    if any(re.fullmatch(r"\w+(?:_\w+)+(?:_?\(\w+\))?", piece) for piece in pieces):
        return True
    words = sum(len(piece.split()) for piece in pieces)
    return len(pieces) >= 3 and words <= 3 * len(pieces) and not any(_ARTICLE.match(piece) for piece in pieces)


def clean_tag(tag: str) -> str:
    """A tag as words: blanks for underscores, plain brackets; faces such as ^_^ stay."""
    if re.search("[A-Za-z]{2}", tag) or not tag.isascii():
        tag = tag.replace("_", " ")
    return " ".join(tag.replace("\\(", "(").replace("\\)", ")").split())


def _tags(text: str, rules: WordRules) -> list[str]:
    """Clean tags without duplicates: who is in the picture first, then the captioner's order."""
    tags = [clean_tag(tag) for tag in tags_of(text)]
    if rules.purpose:
        tags = [tag for tag in tags if not leaves_out(tag, rules.purpose)]
    tags = tags_of(_replace(", ".join(tags), rules.replace))
    unwanted, wanted = ({_folded(word) for word in words} for words in (rules.remove, rules.whitelist))
    own = {_folded(piece) for piece in _own(rules, "tags")}
    seen: dict[str, str] = {}
    for tag in tags:
        folded = _folded(tag)
        if folded not in unwanted and folded not in own and (not wanted or folded in wanted):
            seen.setdefault(folded, tag)
    return sorted(seen.values(), key=lambda tag: not _SUBJECT.fullmatch(tag))


def _folded(tag: str) -> str:
    return clean_tag(tag).casefold()


def _replace(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Whole words, whatever their case; a capital at the start of what was written stays one."""
    for old, new in pairs:

        def put(match: re.Match[str], old: str = old, new: str = new) -> str:
            capital = match[0].istitle() and old[:1].islower()
            return new[:1].upper() + new[1:] if capital else new

        text = _pattern(old).sub(put, text)
    return text


def _pattern(words: str) -> re.Pattern[str]:
    body = r"[\s_]+".join(re.escape(word) for word in re.split(r"[\s_]+", words.strip()))
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, words.strip()) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, words.strip()[-1:]) else ""
    return re.compile(before + body + after, re.IGNORECASE)


def close_gaps(text: str) -> str:
    """A sentence of what is left around each CUT: no dangling "with a", no ", ,", "an" before a vowel."""
    if CUT not in text:
        return text
    cut, rest = re.escape(CUT), r"(?=\s*(?:$|[,.;]))"
    rules = (
        (rf"{cut}(?:\s*(?:,\s*and\b|,|\band\b)?\s*{cut})+", CUT),  # several in a list are one
        (rf"(?:^|(?<=[.!?]\s))\s*{cut}\s*(?:,\s*and\b|,|\band\b|\bwith\b)", ""),
        (rf"(?:^|(?<=[.!?]\s))\s*(?:she|he|it|they|the \w+)\s+(?:has|have|is|are)\s*{cut}\s*(?:[.;]\s*|$)", ""),
        (
            rf"\b(with|has|have|having)\s*{cut}\s*(?:,\s*(?:and\s+)?|and\s+)(?=(?:an?|the|her|his|two|glasses)\s)",
            r"\1 ",
        ),
        (rf"\b(with|has|have|having)\s*{cut}\s*and\s+(?!{_VERB})", r"\1 "),
        (rf"\s*\b(?:with|has|have|having)\s*{cut}\s*and\s+(?={_VERB})", " "),
        (rf"\b(?:has|have)\s*{cut}\s*,\s*(?={_VERB})", ""),
        (
            rf"\b(an?|the)\s*{cut}\s*,\s*(?=(?!{_VERB}|{_SMALL}\b|\w+ed\b|(?:that|which|who|while|as|she|he)\b)\w+\s+\w)",
            rf"\1 {cut} ",
        ),
        (rf"(?:\s*\b{_SMALL})*\s+(?:an?|the)\s*{cut}(?=\s*(?:$|[,.;]|{_SMALL}\b))", " "),
        (rf"(?:,\s*(?:and\s+)?|\band\s+)(?:(?:with|having)\s+)?{cut}\s*and\b", "and"),
        (rf"(?:,|\s+and\b|\s+or\b|,\s*and\b)?(?:\s*\b(?:with|has|have|having|in|of|by|and|or)\b)*\s*{cut}{rest}", ""),
        (rf"\s*\b(?:with|having|has|have)\s*{cut}", " "),
        (rf"(?:,\s*|\s+and\s+){cut}\s*,", ","),
        (rf"\b(a)n?\s*{cut}\s*(?=[aeiou])", r"\1n "),
        (rf"\b(a)n?\s*{cut}\s*(?=\w)", r"\1 "),
        (cut, " "),
    )
    for pattern, new in rules:
        text = re.sub(pattern, new, text, flags=re.IGNORECASE)
    text = re.sub(r"\s+([,.;])", r"\1", re.sub(r"\s+", " ", text))
    text = re.sub(r"(?:,\s*)+([,.;])", r"\1", text)
    return re.sub(r"^[\s,.;]+|[\s,;]+$", "", re.sub(r"([.!?])(?:\s*[.,;])+", r"\1", text))


def _own(rules: WordRules, kind: Kind) -> list[str]:
    """The pieces that the rules themselves put around a caption."""
    return tags_of(f"{rules.trigger},{rules.append},{rules.prefix if kind == 'tags' else ''}")


def without_own(text: str, rules: WordRules, kind: Kind) -> str:
    """What the rules add is taken off first, so that a second pass adds nothing twice."""
    own = {piece.casefold() for piece in _own(rules, kind)}
    pieces = re.split(f"({COMMA.pattern})", text)  # with the commas between, as they were written
    while pieces and pieces[0].strip().casefold() in own:
        del pieces[:2]
    while pieces and pieces[-1].strip().casefold() in own:
        del pieces[-2:]
    text = "".join(pieces).strip()
    prefix = rules.prefix.strip()
    if kind == "sentence" and prefix and (text + " ").casefold().startswith(prefix.casefold() + " "):
        text = text[len(prefix) :].strip()
    return text


def _join(units: Sequence[str], rules: WordRules, kind: Kind) -> str:
    """Trigger first, then prefix, the caption's own units, and what is appended."""
    prefix = rules.prefix.strip()
    if kind == "tags":
        return ", ".join([*tags_of(f"{rules.trigger},{prefix}"), *units, *tags_of(rules.append)])
    body = " ".join(units)
    if rules.append.strip():
        body = body.rstrip(" .,;")
    return ", ".join(filter(None, [rules.trigger.strip(), f"{prefix} {body}".strip(), rules.append.strip()]))


def _shorten(units: list[str], rules: WordRules, kind: Kind, count: Callable[[str], int]) -> str:
    """The joined caption with as many of its first units as `max_tokens` lets in; no "with a" at the cut."""

    def joined(number: int) -> str:
        if kind == "tags" or number == len(units):
            return _join(units[:number], rules, kind)
        return _join(_TRAILING.sub("", " ".join(units[:number])).split(), rules, kind)

    if rules.max_tokens is None or count(joined(len(units))) <= rules.max_tokens:
        return joined(len(units))
    low, high = 0, len(units)  # joined(low) is taken to fit, joined(high) does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(joined(middle)) <= rules.max_tokens else (low, middle)
    return joined(low)
