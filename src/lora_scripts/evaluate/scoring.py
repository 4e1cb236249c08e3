"""How near an answer is to the one that was wanted. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.data.texts.records import words_of

_THOUGHT = "</think>"
"""The end of one."""


def rouge_l(said: str, wanted: str) -> float:
    """ROUGE-L (Lin 2004, section 3.1): the F measure of the longest common subsequence of words, 0 … 1.

    As Google's rouge-score computes it without stemming, for texts of ASCII letters; that one drops all others.
    """
    ours, theirs = words_of(said), words_of(wanted)
    if not ours or not theirs:
        return 0.0
    common = _longest(ours, theirs)
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def spoken(text: str) -> str:
    """What is said behind the thought, as chat templates divide it: Qwen3 is trained to write an empty one first."""
    return text.rpartition(_THOUGHT)[2]


def exact(said: str, wanted: str) -> bool:
    """Whether they are the same but for blanks at both ends."""
    return said.strip() == wanted.strip()


def _longest(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            here = row[i]
            row[i] = before + 1 if word == other else max(row[i], row[i - 1])
            before = here
    return row[-1]


@dataclass(frozen=True)
class Share:
    """How many of some, with the interval in which the true share lies, 95 % (Wilson 1927)."""

    hits: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.hits / self.count if self.count else 0.0


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    z, p = 1.959964, hits / count
    centre, scale = p + z * z / (2 * count), 1 + z * z / count
    reach = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def share(flags: Sequence[bool]) -> Share:
    """Of the flags that are set."""
    hits, count = sum(flags), len(flags)
    return Share(hits, count, *(wilson(hits, count) if count else (0.0, 1.0)))
