"""Advice while a run goes on: told once, when the losses first show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_scripts.run.training import Run


def tell_new(run: Run) -> None:
    """Prints what the latest measurement adds."""
