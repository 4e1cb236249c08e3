"""Chance that is a function of a text, which says what is drawn: the same on every machine, and in every order."""

from __future__ import annotations

import hashlib


def seed_of(key: str) -> int:
    """A seed, 0 … 2^63 - 1, for torch.

    Of a seed a generator on the CPU takes the lower 32 bits only, so nothing may stand in the upper ones alone.
    """
    return int.from_bytes(lot_of(key)[:8], "big") >> 1


def lot_of(key: str) -> bytes:
    """A lot: sorted by theirs, things stand in an order that chance decides."""
    return hashlib.sha256(key.encode()).digest()
