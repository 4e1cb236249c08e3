"""What is kept of each record while a data set is looked at: never the text itself, so that files may be large."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lora_scripts.check.texts import near
from lora_scripts.data.texts.conversations import Completion, Conversation, Record, RecordFault, Text
from lora_scripts.data.texts.records import Records, words_of

if TYPE_CHECKING:
    from lora_scripts.families.texts import TextEncoder


def _luhn(found: str) -> bool:
    """Whether the digits of a payment card have the right sum (ISO/IEC 7812-1, annex B)."""
    digits = [int(sign) for sign in reversed(found) if sign.isdigit()]
    return sum(digit if i % 2 == 0 else sum(divmod(2 * digit, 10)) for i, digit in enumerate(digits)) % 10 == 0


def _identity(found: str) -> bool:
    """Whether the last sign of a Chinese identity number is the right one (GB 11643-1999)."""
    total = sum(int(c) * pow(2, 17 - i, 11) for i, c in enumerate(found[:17]))
    return "10X98765432"[total % 11] == found[17].upper()


def _iban(found: str) -> bool:
    """Whether a bank account has the right remainder (ISO 13616)."""
    whole = found.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in whole[4:] + whole[:4])) % 97 == 1


def _always(found: str) -> bool:
    return True


SECRETS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("a private key", re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"), _always),
    (
        "an access key",
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}"
            r"|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,})\b"
        ),
        _always,
    ),
    ("a session token", re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"), _always),
    ("a password", re.compile(r"(?i)\b(?:password|passwd|secret|api[_-]?key)\s*[:=]\s*['\"]?[^\s'\"]{8,}"), _always),
    ("a mail address", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"), _always),
    ("an identity number", re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{9}[\dXx](?![\dA-Za-z])", re.ASCII), _identity),
    ("a mobile number", re.compile(r"(?<![\d.])(?:\+?86[ -]?)?1[3-9]\d{9}(?![\d.])", re.ASCII), _always),
    (
        "a social security number",
        re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])", re.ASCII),
        _always,
    ),
    (
        "a payment card",
        re.compile(
            r"(?<!\d)(?:62\d{15,17}"
            r"|(?:4\d|5[1-5]|2[2-7]|6[25])\d\d(?:[ -]?\d{4}){3}|3[47]\d\d[ -]?\d{6}[ -]?\d{5})(?!\d)",
            re.ASCII,
        ),
        _luhn,
    ),
    ("a bank account", re.compile(r"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII), _iban),
)
"""What should not be learned by heart, by what it looks like and whether its own check says so: keys of AWS, OpenAI,
GitHub, Hugging Face, Google, Slack; mail; numbers of people in China and the United States, cards, IBAN."""
_SIGN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]")
EXCERPT = 100
"""Letters of a record that are shown."""


@dataclass(frozen=True)
class Row:
    """One record."""

    records: Records
    number: int
    """In `records`."""
    place: str
    held_out: bool
    question: bytes
    """A digest; empty for running text."""
    answer: bytes
    """A digest."""
    words: str
    """The question's beginning, or the text's."""
    said: str
    """The answer's beginning."""
    length: int
    """In tokens where there is a model, else in words."""
    learned: int
    """Tokens that are trained; 0 without a model."""
    signature: np.ndarray
    """For finding what is nearly the same."""
    secrets: tuple[tuple[str, str], ...]
    """(what it looks like, how it begins)"""
    sign: str
    """Of a chat template, in what is said; empty: none."""

    @property
    def both(self) -> tuple[bytes, bytes]:
        return self.question, self.answer

    @property
    def text(self) -> str:
        """All of it, read again."""
        return "\n".join(said_of(self.records[self.number]))


@dataclass(frozen=True)
class Unfit:
    """A record of which nothing could be trained."""

    place: str
    fault: RecordFault


def rows(records: Records, encoder: TextEncoder | None, *, held_out: bool) -> Iterator[Row | Unfit]:
    """Every record, with its tokens where there is an encoder."""
    for number in range(len(records)):
        record, place = records[number], str(records.place(number))
        asked, answered = said_of(record)
        text = f"{asked}\n{answered}"
        learned = 0
        if encoder is None:
            length = len(words_of(text))
        else:
            try:
                examples = encoder.encode(record)
            except RecordFault as fault:
                yield Unfit(place, fault)
                continue
            length = max((len(example.ids) for example in examples), default=0)
            learned = sum(example.count for example in examples)
        sign = _SIGN.search(text)
        found = [(what, first) for what, pattern, real in SECRETS if (first := _first(text, pattern, real))]
        yield Row(
            records=records,
            number=number,
            place=place,
            held_out=held_out,
            question=_digest(asked) if asked.strip() else b"",
            answer=_digest(answered),
            words=excerpt(asked if asked.strip() else answered),
            said=excerpt(answered),
            length=length,
            learned=learned,
            signature=near.signature(text),
            secrets=tuple((what, f"{whole[:4]}…") for what, whole in found),
            sign=sign[0] if sign else "",
        )


def said_of(record: Record) -> tuple[str, str]:
    """What is asked, and what is answered in the end."""
    match record:
        case Text(text):
            return "", text
        case Completion(prompt, completion):
            return prompt, completion
        case Conversation(messages):
            return "\n".join(str(m["content"]) for m in messages[:-1]), str(messages[-1]["content"])


def shown(record: Record, encoder: TextEncoder | None) -> str:
    """A record as people read it: as the model does, what is learned between ⟦ and ⟧, where there is an encoder."""
    if encoder is not None:
        from lora_scripts.families.sequences import marked

        return "\n".join(marked(example, encoder.decode) for example in encoder.encode(record))
    match record:
        case Conversation(messages):
            return "\n".join(f"{m['role']}: {m['content']}" for m in messages)
    return "".join(said_of(record))


def hidden(text: str) -> str:
    """The text without the secrets in it."""

    def shortened(real: Callable[[str], bool], match: re.Match[str]) -> str:
        return f"{match[0][:4]}…" if real(match[0]) else match[0]

    for _, pattern, real in SECRETS:
        text = pattern.sub(partial(shortened, real), text)
    return text


def _first(text: str, pattern: re.Pattern[str], real: Callable[[str], bool]) -> str:
    """The first secret of a kind; empty for none."""
    return next((match[0] for match in pattern.finditer(text) if real(match[0])), "")


def excerpt(text: str) -> str:
    """How it begins, in one line; a secret in it is not shown."""
    line = " ".join(hidden(text[: 10 * EXCERPT]).split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1].rstrip() + "…"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
