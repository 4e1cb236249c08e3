"""Rank and alpha, groups of layers, sizes of pictures: what several trainers have, with the bounds here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_scripts.adopt.found import Found, Left
from lora_scripts.adopt.turns import count, number, some
from lora_scripts.families.facts import Facts

MOST = 128
"""The highest rank here."""


def put_rank(found: Found, of_rank: str, of_alpha: str, *, rank: int, alpha: float, written: bool = True) -> None:
    """Rank and alpha, `rank` and `alpha` being their defaults; an alpha of 0 is the rank. Of a rank that is too high
    alpha / rank stays. `written`: whether alpha means something."""
    size = found.take(of_rank, some(count), None) or rank
    strength = found.take(of_alpha, number, alpha) or float(size)
    if size > MOST:
        found.left.append(Left(found.why(of_rank, size), f"{MOST} is the most here, with alpha / rank as it was"))
        strength *= MOST / size
    found.put("lora_rank", min(size, MOST), of_rank)
    if written:
        found.put("lora_alpha", strength, of_alpha)


def put_resolution(found: Found, key: str, sizes: Sequence[Any]) -> None:
    """One size, the largest of several, each picture being seen in one size here."""
    if not sizes:
        return
    largest = max(sizes, key=lambda size: size * size if isinstance(size, int) else size[0] * size[1])
    found.put("resolution", largest, key)
    if len(sizes) > 1:
        found.leave(
            key,
            "each picture is trained in one size here, the largest of these",
        )


def put_groups(found: Found, facts: Facts | None, told: str, more: Sequence[str]) -> None:
    """Attention and feed-forward layers, and `more` groups of them as far as the family has them; nothing where that is
    what we train anyway."""
    also = [group for group in more if facts is not None and group in facts.groups]
    if also:
        found.put("targets", ["attention", "feed_forward", *also], note=told)
