"""Tags: the parts of a caption between commas. Spellings of one tag, and captions put right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

SEPARATOR = re.compile(r"(\s*(?:,(?!\d)|(?<!\d),|，|、)\s*)")  # the comma in "1,000 people" parts nothing
WORD = re.compile(r"[^\W\d_]+(?:[-'’_][^\W\d_]+)*")
LONGEST_TAG = 4
"""Words. A longer part is a clause, which nobody repeats letter by letter."""
_JOINTS = re.compile(r"[\s_\-]+")
_GLUE = frozenset({"any", "every", "no", "some", "over", "under", "out", "in", "up", "down"})
"""Words that make a new word with their neighbour: "everyday" is not "every day"."""


def parts(text: str) -> list[str]:
    """What stands between the commas, without empty parts."""
    return [part for part in SEPARATOR.split(text)[::2] if part]


def tags(text: str) -> list[str]:
    """The short parts of a caption that has several; none of a plain sentence."""
    pieces = parts(text)
    return [part for part in pieces if len(part.split()) <= LONGEST_TAG] if len(pieces) > 1 else []


def words(text: str) -> list[str]:
    """The words, in lower case; a hyphen keeps one together."""
    return WORD.findall(text.casefold())


def squeezed(tag: str) -> str:
    """What spellings of one tag have in common: "neonlights" for "Neon-Lights" and "neon lights"."""
    return _JOINTS.sub("", tag.casefold())


def listed(forms: Sequence[tuple[str, int]]) -> str:
    """Spellings with how many captions have them: '"neon lights" in 12, "neonlights" in 1'."""
    first, *others = forms
    more = "".join(f', "{form}" in {count}' for form, count in others)
    return f'"{first[0]}" in {first[1]} caption{"s" if first[1] > 1 else ""}{more}'


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent first; of equals the one with more spaces, then by letter."""
    return sorted(counts.items(), key=lambda form: (-form[1], -form[0].count(" "), form[0]))


def joint_variants(texts: Iterable[str]) -> list[list[tuple[str, int]]]:
    """Groups of tags that differ in blanks, hyphens and underscores alone, as (spelling, captions) in lower case."""
    groups: dict[str, Counter[str]] = {}
    for text in texts:
        for tag in {tag.casefold() for tag in tags(text)}:
            groups.setdefault(squeezed(tag), Counter())[tag] += 1
    return [_ranked(forms) for key, forms in sorted(groups.items()) if key and len(forms) > 1]


def case_variants(texts: Iterable[str]) -> list[list[tuple[str, int]]]:
    """Groups of tags that differ in upper and lower case alone. A caption's first letter does not count."""
    groups: dict[str, Counter[str]] = {}
    for text in texts:
        inner = tags(text)
        if inner and inner[0] == parts(text)[0]:
            inner = inner[1:]
        for tag in set(inner):
            groups.setdefault(tag.casefold(), Counter())[tag] += 1
    return [_ranked(forms) for _, forms in sorted(groups.items()) if len(forms) > 1]


def plural_variants(texts: Iterable[str]) -> list[list[tuple[str, int]]]:
    """Pairs of tags of which one is the other with an s."""
    counts = Counter(tag for text in texts for tag in {tag.casefold() for tag in tags(text)})
    pairs = [(tag, tag + "s") for tag in counts if len(tag) > 2 and not tag.endswith("s")]
    return [_ranked({form: counts[form] for form in pair}) for pair in sorted(pairs) if pair[1] in counts]


def word_variants(texts: Iterable[str], known: Iterable[str]) -> list[list[tuple[str, int]]]:
    """One word here and two there, anywhere in a caption: "neonlights", "neon lights". `known`: keys told already."""
    single: dict[str, Counter[str]] = {}
    double: dict[str, Counter[str]] = {}
    for text in texts:
        seen: dict[str, tuple[dict[str, Counter[str]], str]] = {}
        for part in parts(text):
            row = words(part)
            seen |= {word: (single, word) for word in row}
            seen |= {
                f"{a} {b}": (double, f"{a} {b}")
                for a, b in pairwise(row)
                if min(len(a), len(b)) >= 3 and not {a, b} & _GLUE and f"{a} {b}" in part.casefold()
            }
        for table, form in seen.values():
            table.setdefault(squeezed(form), Counter())[form] += 1
    variants = []
    for key in sorted(single.keys() - set(known)):
        forms = single[key] + double.get(key, Counter())
        if len(forms) > 1:
            variants.append(_ranked(forms))
    return variants


def corrections(texts: Sequence[str]) -> dict[str, str]:
    """Rarer spelling -> most frequent one, for tags that differ in blanks, hyphens and underscores. Nothing else is
    safe to change without asking: a plural may be meant."""
    return {form: group[0][0] for group in joint_variants(texts) for form, _ in group[1:]}


def twice(text: str) -> list[str]:
    """The tags that stand in a caption more than once."""
    counts = Counter(tag.casefold() for tag in tags(text))
    return [tag for tag, count in counts.items() if count > 1]


def corrected(text: str, table: Mapping[str, str]) -> str:
    """The caption with `table` applied to its tags, without empty and repeated tags; the same text if nothing is wrong.

    Separators stay as they are written.
    """
    short = {tag.casefold() for tag in tags(text)}
    pieces = SEPARATOR.split(text.strip())
    written: list[str] = []
    seen: set[str] = set()
    for index in range(0, len(pieces), 2):
        part = pieces[index]
        if part.casefold() in short:
            part = table.get(part.casefold(), part)
            if part.casefold() in seen:
                continue
            seen.add(part.casefold())
        if part:
            written += ([pieces[index - 1].lstrip()] if written else []) + [part]
    return "".join(written)
