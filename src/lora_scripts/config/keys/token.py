"""Pivotal tuning: words of one's own, trained together with the LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from lora_scripts.config.types import Fault, Keys, Rate, no_effect

_WORD = re.compile(r"[^\W_][\w-]*")


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise ValueError("must be one word of letters, digits, - and _, as people will type it")
    if len(value) > 60:
        raise ValueError("must be a word of at most 60 letters: its file is named after it")
    return value


def _words(value: tuple[str, ...]) -> tuple[str, ...]:
    if len({word.lower() for word in value}) < len(value):
        raise ValueError("names a word twice; capitals make no difference")
    return value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _stop(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("must be a share of the run below 1, or a step, which is a whole number")
    return value


class TokenKeys(Keys):
    """Pivotal tuning: words of one's own, trained together with the LoRA."""

    TITLE: ClassVar[str] = "New word (pivotal tuning)"
    NEEDS: ClassVar[Mapping[str, str]] = {"new_token": "clip"}

    new_token: Annotated[
        tuple[Annotated[str, AfterValidator(_word)], ...], BeforeValidator(_one_or_more), AfterValidator(_words)
    ] = ()
    """A word of your own (or a list of them) that the captions hold; what it means to the text encoder is learnt
    together with the LoRA (pivotal tuning, arXiv:2208.01618 and 2106.05744)."""
    token_vectors: Annotated[int, Field(ge=1, le=8)] = 1
    """How many of a prompt's 75 places a new word takes up; 2 to 4 for what is hard to say. Only with new_token."""
    token_init: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    """What a new word means at first: "neon city", or one text for each. Without it, the mean of all words."""
    token_lr: Rate = 1e-3
    """The learning rate of new words. Only with new_token."""
    token_stop: Annotated[float, Field(gt=0), AfterValidator(_stop)] | None = None
    """When new words are trained no more: a share of the run (0.5), or a step. Only with new_token."""
    token_bundle: bool = False
    """Put new words into the LoRA file too, for A1111, which reads them there; diffusers and additional-networks then
    refuse the file. Only with new_token."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        words, init = (_one_or_more(values.get(key)) for key in ("new_token", "token_init"))
        if words == ():
            for key in ("token_vectors", "token_init", "token_lr", "token_stop", "token_bundle"):
                yield no_effect(key, "new_token", "new_token: a word that the captions hold")
        elif isinstance(words, tuple) and isinstance(init, tuple) and len(init) not in (0, 1, len(words)):
            yield "token_init", f"has {len(init)} texts for {len(words)} new words", "write one, or one for each"
        if words and values.get("caption_dropout") == 1:
            yield "new_token", "is never seen, because caption_dropout: 1 drops every caption", "lower it"
        if words and values.get("optimizer") == "prodigy":
            yield "new_token", "cannot have a rate of its own with optimizer: prodigy", "use another optimizer"
