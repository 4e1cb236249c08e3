"""What is kept of each record while a data set is looked at: never the text itself, so that files may be large."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_scripts.check.texts import near
from lora_scripts.data.conversations import Completion, Conversation, Record, RecordFault, Text
from lora_scripts.data.records import Records, words_of

if TYPE_CHECKING:
    from lora_scripts.families.texts import TextEncoder

SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a private key", re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")),
    (
        "an access key",
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}"
            r"|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,})\b"
        ),
    ),
    ("a session token", re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")),
    ("a password", re.compile(r"(?i)\b(?:password|passwd|secret|api[_-]?key)\s*[:=]\s*['\"]?[^\s'\"]{8,}")),
    ("a mail address", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")),
)
"""What should not be learned by heart, by what it looks like: AWS, OpenAI, GitHub, Hugging Face, Google, Slack."""
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
        found = [(what, match[0]) for what, pattern in SECRETS if (match := pattern.search(text))]
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
        from lora_scripts.families.texts import marked

        return "\n".join(marked(example, encoder.decode) for example in encoder.encode(record))
    match record:
        case Conversation(messages):
            return "\n".join(f"{m['role']}: {m['content']}" for m in messages)
    return "".join(said_of(record))


def hidden(text: str) -> str:
    """The text without the secrets in it."""
    for _, pattern in SECRETS:
        text = pattern.sub(lambda match: f"{match[0][:4]}…", text)
    return text


def excerpt(text: str) -> str:
    """How it begins, in one line; a secret in it is not shown."""
    line = " ".join(hidden(text[: 10 * EXCERPT]).split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1].rstrip() + "…"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
