"""One self-contained HTML page about a finished run on texts: the same questions answered before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.report.curves import curves
from lora_scripts.report.data import HeldOutCurve
from lora_scripts.report.environment import fill
from lora_scripts.report.usage import chat_command


@dataclass(frozen=True)
class AnswerPair:
    """A question, and what the base and the LoRA answer."""

    asked: str
    before: str
    after: str
    wanted: str | None
    ended: bool
    """That the answer with the LoRA ended by itself."""
    steps: Sequence[tuple[int, str]]
    """(step, answer) of previews."""


@dataclass(frozen=True)
class TextReportData:
    """What the page shows."""

    name: str
    folder: str
    """Of the LoRA."""
    base: str
    verification: str
    warning: str
    facts: Sequence[tuple[str, str]]
    answers: Sequence[AnswerPair]
    example: str
    """A record with what is learned of it between two marks."""
    loss: Sequence[tuple[int, float]]
    learning_rate: Sequence[tuple[int, float]]
    held_out: HeldOutCurve | None
    advice: Sequence[str]
    config_text: str
    versions: dict[str, str]
    language: str = "auto"
    """In which the page opens: en, zh, or the browser's."""


def render(data: TextReportData) -> str:
    """The whole page as HTML."""
    chat = chat_command(data.base, data.folder)
    return fill("text_report.html", report=data, chat=chat, curves=curves(data), language=data.language)
