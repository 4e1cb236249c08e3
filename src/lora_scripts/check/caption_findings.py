"""What is wrong with the captions of a set, from the words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_scripts.check import contradictions, tags, vocabulary
from lora_scripts.check.vocabulary import Captioned
from lora_scripts.data.findings import Finding, Severity
from lora_scripts.families.clip import prompts
from lora_scripts.families.clip.tokenizer import clip_counter

_PAGE = re.compile(r"^\s*(<!doctype|<html|<\?xml|<head|<body)\b|</(html|body|head)>", re.IGNORECASE)
_CELL = re.compile(r"#(NAME\?|REF!|VALUE!|DIV/0!|N/A|NUM!|NULL!|SPILL!|CALC!|ERROR!|####*)")
_NOTHING = frozenset({"nan", "null", "none", "undefined", "n/a", "[object object]", "<na>", "nat"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
READ = prompts.ROOM
"""Tokens of a caption that CLIP reads: 77 positions, less the two that mark start and end."""


def caption_findings(
    captions: Sequence[Captioned], *, trigger: Sequence[str] = (), read: int | None = READ
) -> list[Finding]:
    """Every test of the captions; pictures without one are left to `missing`. `read`: tokens that CLIP reads of one;
    None where another text encoder reads it."""
    said = [caption for caption in captions if caption.text]
    return [
        *nonsense(said),
        *truncated(said, read),
        *identical(said),
        *contradictions.within(said),
        *vocabulary.misspelt(said),
        *spellings(said),
        *repeated(said),
        *vocabulary.trigger_coverage(said, trigger),
        *contradictions.synonyms(said),
        *vocabulary.common_and_single(said, trigger or vocabulary.guess_trigger(said)),
    ]


def nonsense(captions: Sequence[Captioned]) -> list[Finding]:
    """Captions that are what a program left where a person's words should be."""
    findings = []
    for caption in captions:
        if why := _nonsense(caption.text):
            text = caption.text.encode("unicode_escape").decode() if _CONTROL.search(caption.text) else caption.text
            message = f'the caption is {why}: "{text}"'
            mend = "write what the picture shows"
            findings.append(
                Finding("caption_nonsense", "warning", (caption.name,), message, mend, None, caption.source)
            )
    return findings


def _nonsense(text: str) -> str:
    """What a caption is, if it is none; "" for any other."""
    if _PAGE.search(text):
        return "a web page"
    if _CELL.fullmatch(text):
        return "an error of a spreadsheet"
    if text.casefold() in _NOTHING:
        return "a program's word for nothing"
    return "text with control characters, or letters that were lost" if _CONTROL.search(text) else ""


def missing(names: Sequence[str], *, allowed: bool) -> list[Finding]:
    """The pictures without a caption: training would stop, unless the config allows it."""
    if not names:
        return []
    message = f"{len(names)} without a caption" if len(names) > 1 else "has no caption"
    severity: Severity = "warning" if allowed else "error"
    mend = "write captions, or let lora-scripts label write them"
    return [Finding("caption_missing", severity, tuple(names), message, mend)]


def cut(text: str, read: int = READ) -> tuple[int, int, int] | None:
    """How many tokens a caption has, how many of them CLIP reads, and the letter where it stops; None if it reads all.

    In each chunk of 75: one that is full ends at a comma, so that fewer than `read` may be kept.
    """
    if text.isascii() and len(text) <= READ:
        return None  # a token has at least one letter
    counted = clip_counter().encode(text)
    kept = prompts.kept(counted.ids, read // READ)
    return (len(counted), kept, counted.offsets[kept][0]) if len(counted) > kept else None


def truncated(captions: Sequence[Captioned], read: int | None = READ) -> list[Finding]:
    """Captions of which CLIP does not read the end."""
    findings = []
    for caption in captions:
        if read and (found := cut(caption.text, read)):
            count, kept, at = found
            message = f'{count} tokens, of which CLIP reads {kept}; cut away: "{caption.text[at:].lstrip(" ,")}"'
            mend = "shorten it, with what matters in front"
            findings.append(
                Finding("caption_truncated", "warning", (caption.name,), message, mend, None, caption.source)
            )
    return findings


def identical(captions: Sequence[Captioned]) -> list[Finding]:
    """Captions that several pictures share, word for word."""
    groups: dict[str, list[Captioned]] = {}
    for caption in captions:
        groups.setdefault(caption.text.casefold(), []).append(caption)
    findings = []
    for group in groups.values():
        if len(group) > 1:
            message = f'{len(group)} pictures have one caption: "{group[0].text}"'
            mend = "say of each what only it shows"
            files = tuple(caption.name for caption in group)
            findings.append(Finding("captions_identical", "warning", files, message, mend, None, group[0].source))
    return findings


def spellings(captions: Sequence[Captioned]) -> list[Finding]:
    """Tags, and words, that are written in more than one way."""
    texts = [caption.text for caption in captions]
    joints = tags.joint_variants(texts)
    plurals = tags.plural_variants(texts)
    keys = {tags.squeezed(form) for group in (*joints, *plurals) for form, _ in group}
    asked = "if the same is meant, write it in one way"
    findings = [_variant(captions, group, "warning", f'write "{group[0][0]}" everywhere') for group in joints]
    findings += [_variant(captions, group, "warning", asked) for group in tags.word_variants(texts, keys)]
    findings += [_variant(captions, group, "note", asked) for group in plurals]
    cases = tags.case_variants(texts)
    if cases:
        message = f"{len(cases)} tags differ in upper and lower case, which is the same to CLIP: "
        message += "; ".join(" / ".join(form for form, _ in group) for group in cases[:10])
        findings.append(Finding("tag_case", "note", (), message, "nothing need be done"))
    return findings


def _variant(captions: Sequence[Captioned], group: list[tuple[str, int]], severity: Severity, mend: str) -> Finding:
    rarer = [form for form, _ in group[1:]]
    holders = [c for c in captions if any(vocabulary.has_phrase(c.text, form) for form in rarer)]
    files, source = tuple(c.name for c in holders), holders[0].source if holders else None
    return Finding(
        "spelling_variants", severity, files, f"one thing, written as {tags.listed(group)}", mend, 0.8, source
    )


def repeated(captions: Sequence[Captioned]) -> list[Finding]:
    """Captions with a tag twice."""
    findings = []
    for caption in captions:
        if repeats := tags.twice(caption.text):
            message = "stands twice in the caption: " + ", ".join(f'"{tag}"' for tag in repeats)
            mend = "keep the first"
            findings.append(Finding("tag_twice", "note", (caption.name,), message, mend, None, caption.source))
    return findings
