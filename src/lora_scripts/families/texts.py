"""What the house knows of a model whose samples are texts: the protocol of its families, and how one answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from lora_scripts.data.texts.conversations import Message, Record
from lora_scripts.families.base import Family
from lora_scripts.families.sequences import Example, TextBatch

BEGINNING = "beginning"
"""The role of a text that a model goes on with as it stands, without a chat template."""
TrainOn = Literal["answers", "all"]
LongRecords = Literal["cut", "leave_out"]


@dataclass
class Counts:
    """What happened to the records so far, for the one who reads along."""

    examples: int = 0
    tokens: int = 0
    trained: int = 0
    cut: int = 0
    """Records that were longer than `max_length`: their end is left off."""
    left_out: int = 0
    """Records that were longer than `max_length`, and are not trained at all."""
    split: int = 0
    """Conversations that became several examples, because the template rewrites the history."""
    thoughtless: int = 0
    """Conversations of which the template leaves out what the model thought before an answer."""
    ended: int = 0
    """Answers to which the end of a text was added, because the template puts no sign there that stops the model."""


class TextEncoder(Protocol):
    """Turns records into tokens."""

    counts: Counts
    max_length: int
    """Tokens of an example, at most."""
    places: int | None
    """How many tokens the model can take at once; None: it names no limit."""

    def encode(self, record: Record) -> list[Example]:
        """The sequences of one record. `data.texts.conversations.RecordFault` for one that cannot be trained."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, signs and all."""
        ...


@dataclass(frozen=True)
class Answering:
    """How a model answers."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from."""
    seed: int = 0
    think: bool = True
    """False: the prompt for an answer is that of a model which shall not think first, where its template has one."""


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    tokens: int
    stopped: bool
    """Whether it ended by itself; False: at `max_tokens`."""


class TextFamily(Family, Protocol):
    """A family whose samples are texts."""

    @property
    def words(self) -> str:
        """What it is, for people: its architecture and size."""
        ...

    @property
    def transposes(self) -> bool:
        """Whether its weights lie [in, out] in its files."""
        ...

    @property
    def layer_names(self) -> Collection[str]:
        """Paths of all layers that whoever loads the whole model has: those of `trainable`, and what is not loaded."""
        ...

    def refusal(self, pattern: str, matches: Callable[[str], bool]) -> str | None:
        """Why a pattern that names no layer of `trainable` names none, where that is for a reason."""
        ...

    def as_peft_loads(self, adapter: Path, batch: TextBatch) -> Tensor:
        """The logits of the model with a PEFT adapter on it that PEFT itself has loaded; afterwards it is as before."""
        ...

    @property
    def packs(self) -> bool:
        """Whether sequences in one row leave each other alone, as a test on the loaded model finds."""
        ...

    def room(
        self, messages: Sequence[Message], *, template: str | None = None, tools: Sequence[Mapping[str, Any]] = ()
    ) -> int | None:
        """How many tokens are left for an answer to a conversation, below 1: none; None where no limit is known.
        UserError where the chat template refuses the conversation."""
        ...

    def loss(self, batch: TextBatch) -> tuple[Tensor, int]:
        """The sum of the losses of all trained tokens, with gradient, and their number."""
        ...

    def losses(self, batch: TextBatch) -> Tensor:
        """The loss of each place, float32 [rows, width]; 0 where nothing is trained."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, signs and all."""
        ...

    def template_text(self, template: str | None = None) -> str | None:
        """The chat template as text; see `encoder`. None where there is none."""
        ...

    def logits(self, batch: TextBatch) -> Tensor:
        """[rows, width, vocabulary] float32, on the CPU; without gradient."""
        ...

    def encoder(
        self, *, template: str | None = None, train_on: TrainOn, max_length: int, long_records: LongRecords
    ) -> TextEncoder:
        """`template`: name or file of a chat template, None: the model's own. UserError for one that is none. Examples
        are no longer than the model has places for, whatever `max_length` is."""
        ...

    def answer(
        self,
        messages: Sequence[Message],
        answering: Answering,
        tell: Callable[[str], None] | None = None,
        *,
        template: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Answer:
        """The next turn of a conversation; `tell` gets its text piece by piece, as it comes. UserError where nothing
        can be answered: see `room`."""
        ...

    def answers(
        self,
        talks: Sequence[Sequence[Message]],
        answering: Answering,
        *,
        template: str | None = None,
        tools: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    ) -> list[Answer]:
        """The next turn of each conversation, worked out together; `tools` are those of each."""
        ...
