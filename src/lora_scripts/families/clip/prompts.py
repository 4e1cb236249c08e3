"""A prompt of any length, with "(word:1.2)", as CLIP's chunks of 75 tokens and a weight for each: what WebUIs do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_scripts.families.clip.tokenizer import MAX_LENGTH, VOCABULARY, clip_counter, clip_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

ROOM = MAX_LENGTH - 2
"""Tokens of a chunk, between its start and its end."""
START, END = VOCABULARY - 2, VOCABULARY - 1
"""The tokens that begin and end a chunk."""
COMMA_REACH = 20
"""A chunk that is full ends at its last comma, if that is no more than so many tokens back."""
CUT = "the last chunk is filled"
"""Where a text is cut off, for keys of a cache: an earlier version ended it at a comma."""
BREAK = "BREAK"
Words = Mapping[str, tuple[int, ...]]
"""New words -> the token numbers that each stands for."""

_NUMBER = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Chunk:
    """77 token numbers, start and end included, and as many weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def plain(text: str) -> list[tuple[str, float]]:
    """A caption as it stands: brackets are brackets."""
    return [(text, 1.0)]


def weighted(prompt: str) -> list[tuple[str, float]]:
    r"""(text, weight) for each stretch of a prompt: (a) is 1.1, ((a)) 1.21, [a] 1 / 1.1, (a:1.3) 1.3; "\(" is one.

    A bracket that is never closed counts to the end. The word BREAK comes back as (BREAK, -1).
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(text: str) -> None:
        texts.append(text)
        weights.append(1.0)

    def close(kind: str, factor: float) -> None:
        for i in range(opened[kind].pop(), len(weights)):
            weights[i] *= factor

    at = 0
    while at < len(prompt):
        letter, number = prompt[at], _NUMBER.match(prompt, at)
        step = 1
        if letter == "\\" and prompt[at + 1 : at + 2] in tuple("()[]\\"):
            add(prompt[at + 1])
            step = 2
        elif letter in opened:
            opened[letter].append(len(texts))
        elif number and opened["("]:
            close("(", float(number[1]))
            step = len(number[0])
        elif letter == ")" and opened["("]:
            close("(", 1.1)
        elif letter == "]" and opened["["]:
            close("[", 1 / 1.1)
        else:
            add(letter)
        at += step
    for kind, factor in (("(", 1.1), ("[", 1 / 1.1)):
        while opened[kind]:
            close(kind, factor)
    return list(_joined(texts, weights)) or [("", 1.0)]


def _joined(texts: Sequence[str], weights: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Neighbours of one weight as one stretch, cut at BREAK."""
    start = 0
    for end in range(1, len(texts) + 1):
        if end < len(texts) and weights[end] == weights[start]:
            continue
        pieces = _BREAK.split("".join(texts[start:end]))
        for i, piece in enumerate(pieces):
            if i:
                yield BREAK, -1.0
            if piece:
                yield piece, weights[start]
        start = end


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the words where it stands by itself; capitals make no difference, as to CLIP."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


def chunks(
    stretches: Sequence[tuple[str, float]],
    most: int | None = None,
    words: Words | None = None,
    *,
    pad: int | None = None,
) -> list[Chunk]:
    """At least one chunk; a full one ends at a comma if there is one near. `most`: what is beyond is cut off, and the
    last chunk is filled.

    `words`: new ones, with the token numbers that they stand for, which never part. `pad`: the token that a chunk is
    filled up with after its end; None: the end again.
    """
    tokenizer = clip_tokenizer()
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done: list[list[tuple[int, float]]] = [[]]
    for (text, weight), groups in zip(stretches, _tokens([text for text, _ in stretches], words or {}), strict=True):
        if text == BREAK and weight < 0:
            done.append([])
            continue
        for ids in groups:
            _lay(done, [(token, weight) for token in ids], comma, most)
    return [_chunk(row, END if pad is None else pad) for row in done[:most]]


def kept(tokens: Sequence[int], most: int) -> int:
    """How many of a caption's tokens are in its first `most` chunks. It needs no transformers."""
    (comma,) = clip_counter().encode(",").ids
    done: list[list[tuple[int, float]]] = [[]]
    for token in tokens:
        _lay(done, [(token, 1.0)], comma, most)
    return sum(map(len, done[:most]))


def _lay(done: list[list[tuple[int, float]]], group: Sequence[tuple[int, float]], comma: int, most: int | None) -> None:
    """Puts tokens that never part into the last chunk, or into one more where it is full; the chunk `most` hands
    nothing on, as what is behind it is not read."""
    if len(done[-1]) + len(group) > ROOM:
        whole = [token for token, _ in group] == [comma] or (most is not None and len(done) >= most)
        done.append([] if whole else _rest_after_comma(done[-1], comma))
    done[-1] += group


def _tokens(texts: Sequence[str], words: Words) -> list[list[tuple[int, ...]]]:
    """For each text its tokens, each alone but those of a new word."""
    folded = {word.lower(): ids for word, ids in words.items()}
    pieces = [word_pattern(words).split(text) if words else [text] for text in texts]  # text, word, text, …
    plain_pieces = [piece for row in pieces for piece in row[::2]]
    encoded = iter(clip_tokenizer()(plain_pieces, add_special_tokens=False).input_ids)
    rows = []
    for row in pieces:
        groups: list[tuple[int, ...]] = []
        for i, piece in enumerate(row):
            groups += [folded[piece.lower()]] if i % 2 else [(token,) for token in next(encoded)]
        rows.append(groups)
    return rows


def _rest_after_comma(row: list[tuple[int, float]], comma: int) -> list[tuple[int, float]]:
    """What a full chunk hands on: all behind its last comma, taken out of it; nothing if that is too far back."""
    for back in range(1, COMMA_REACH + 1):
        if row[-back][0] == comma:
            rest = row[len(row) - back + 1 :]
            del row[len(row) - back + 1 :]
            return rest
    return []


def _chunk(row: list[tuple[int, float]], pad: int) -> Chunk:
    padding = ROOM - len(row)
    ids = (START, *(token for token, _ in row), END, *[pad] * padding)
    return Chunk(ids, (1.0, *(weight for _, weight in row), *[1.0] * (padding + 1)))


def emphasise(states: Tensor, weights: Tensor) -> Tensor:
    """States times the weights of their tokens [n, 77], at the mean that each chunk had before (as WebUIs do)."""
    import torch  # a data set is looked at before it is needed

    changed = states * weights[..., None]
    before, after = states.mean((1, 2), keepdim=True), changed.mean((1, 2), keepdim=True)
    # A text encoder whose states have no mean to keep gives rounding over rounding.
    known = (before.abs() > 1e-6) & (after.abs() > 1e-6)
    return changed * torch.where(known, before / after, 1.0)
