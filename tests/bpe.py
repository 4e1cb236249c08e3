"""CLIP's byte-pair encoding once more, straight from the algorithm (Radford et al. 2021, `simple_tokenizer.py`).

Only Python's own library, so that it shares nothing with the tokenizer that is tested but the merges file.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from functools import cache
from importlib import resources
from itertools import pairwise


@cache
def ranks() -> dict[tuple[str, str], int]:
    packed = resources.files("lora_scripts.families").joinpath("assets/clip_merges.txt.gz").read_bytes()
    rows = gzip.decompress(packed).decode("utf-8").splitlines()
    return {(one, other): rank for rank, (one, other) in enumerate(row.split(" ") for row in rows)}


@cache
def stand_ins() -> dict[int, str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def pieces(text: str) -> list[str]:
    """Runs of letters, single digits, runs of anything else; 's and its like by themselves."""
    out: list[str] = []
    kind = " "
    rest = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
    while rest:
        short = re.match(r"'s|'t|'re|'ve|'m|'ll|'d", rest)
        if short:
            out.append(short[0])
            rest, kind = rest[short.end() :], " "
            continue
        sort = unicodedata.category(rest[0])[0]
        now = sort if sort in "LN" else " " if rest[0].isspace() else "other"
        if now == " ":
            pass
        elif now == kind and now != "N":
            out[-1] += rest[0]
        else:
            out.append(rest[0])
        kind, rest = now, rest[1:]
    return out


@cache
def encoded(piece: str) -> tuple[str, ...]:
    parts = [stand_ins()[byte] for byte in piece.encode()]
    parts[-1] += "</w>"
    while len(parts) > 1:
        pairs = [(ranks().get(pair, 10**9), i) for i, pair in enumerate(pairwise(parts))]
        best, at = min(pairs)
        if best == 10**9:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts)


def tokens(text: str) -> list[str]:
    return [token for piece in pieces(text) for token in encoded(piece)]
