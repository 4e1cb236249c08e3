"""The empty thought before an answer, which nobody asked for."""

from __future__ import annotations

import re
from collections.abc import Callable

_EMPTY = re.compile(r"\A\s*(?:<think>\s*)?</think>\s*")
"""As Qwen3's template writes it and it has learned; or its end, where the prompt for an answer opens it."""
_SIGNS = "<think></think>", "</think>"


def without(answer: str) -> str:
    """The answer without an empty thought before it."""
    return _EMPTY.sub("", answer)


class Spoken:
    """Hands on the pieces of one answer as they come, from the first on that is of no empty thought."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._held: str | None = ""

    def __call__(self, piece: str) -> None:
        if self._held is None:
            self._tell(piece)
            return
        self._held += piece
        begun = "".join(self._held.split())
        said = without(self._held)
        if said and (said != self._held or not any(sign.startswith(begun) for sign in _SIGNS)):
            self._held = None
            self._tell(said)

    def end(self) -> None:
        """Hands on what was held back and has become no thought."""
        if self._held and (said := without(self._held)):
            self._tell(said)
        self._held = None
