"""`lora-scripts chat`: a conversation with a language model and LoRAs on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError
from lora_scripts.events import Event, Note, Sink, ignore

if TYPE_CHECKING:
    from lora_scripts.data.conversations import Message
    from lora_scripts.families.texts import Answer, Answering, TextFamily

COMMANDS = {
    "/new": "begin anew, with the same system prompt",
    "/system TEXT": "begin anew with another system prompt; without TEXT, with none",
    "/again": "answer the last message once more, otherwise if answers are drawn",
    "/quit": "leave (as does Ctrl-D)",
    "/help": "say this",
}


@dataclass(frozen=True)
class Piece(Event):
    """A part of an answer, as it comes."""

    text: str


@dataclass(frozen=True)
class Turn:
    """What was asked, and what was answered."""

    asked: str
    answer: str
    tokens: int
    stopped: bool
    """That the model ended its answer by itself."""


@dataclass(frozen=True)
class Chatted:
    """A conversation that is over."""

    turns: tuple[Turn, ...]


@dataclass
class Session:
    """One conversation. The model keeps nothing of it: each answer is worked out from all that was said."""

    model: TextFamily
    answering: Answering
    system: str = ""
    template: str | None = None

    def __post_init__(self) -> None:
        self.messages: list[Message] = []
        self.turns: list[Turn] = []
        self.reset(self.system)

    def reset(self, system: str) -> None:
        """Forgets what was said."""
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, tell: Callable[[str], None] | None = None, *, seed: int = 0) -> Answer:
        """The answer, which goes into the history. UserError where the chat template refuses the conversation, which is
        then as it was."""
        from dataclasses import replace

        talk: list[Message] = [*self.messages, {"role": "user", "content": text}]
        answering = replace(self.answering, seed=self.answering.seed + seed)
        answer = self.model.answer(talk, answering, tell, template=self.template)
        self.messages = [*talk, {"role": "assistant", "content": answer.text}]
        self.turns.append(Turn(text, answer.text, answer.tokens, answer.stopped))
        return answer


def chat(
    base: Path,
    loras: Sequence[tuple[Path, float]],
    lines: Callable[[], str | None],
    *,
    system: str = "",
    template: str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    think: bool = True,
    device: str = "auto",
    precision: str = "auto",
    sink: Sink = ignore,
) -> Chatted:
    """Answers each line that `lines` gives, until that is None. UserErrors for what is wrong with the files."""
    from lora_scripts.loras import on_texts

    on_texts.check(base, loras)
    from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
    from lora_scripts.families.base import LoadOptions
    from lora_scripts.families.texts import Answering

    where = choose_device(device)
    model = on_texts.load(base, LoadOptions(where, DTYPES[choose_precision(precision, where)]))
    on_texts.wear(model, loras)
    template = on_texts.template_of(template, loras)
    session = Session(model, Answering(max_tokens, temperature, top_p, seed, think), system, template)
    again = 0
    while (line := lines()) is not None:
        text = line.strip()
        if text == "/quit":
            break
        if text == "/again" and session.turns:
            again, text = again + 1, session.turns[-1].asked
            del session.messages[-2:]
        elif text.startswith("/"):
            again = 0
            _command(session, text, sink)
            continue
        if not text:
            continue
        try:
            answer = session.ask(text, lambda piece: sink(Piece(piece)), seed=again)
        except UserError as fault:
            sink(Note(f"error: {fault}"))
            continue
        sink(Piece("\n"))
        if not answer.stopped:
            sink(Note(f"(cut off after {answer.tokens} tokens; --max-tokens gives it more)"))
    return Chatted(tuple(session.turns))


def _command(session: Session, text: str, sink: Sink) -> None:
    word, _, rest = text.partition(" ")
    if word == "/new":
        session.reset(session.system)
        sink(Note("(a new conversation)"))
    elif word == "/system":
        session.reset(rest.strip())
        sink(Note("(a new conversation with this system prompt)" if rest else "(a new conversation)"))
    else:
        sink(Note("\n".join(f"{command}: {meaning}" for command, meaning in COMMANDS.items())))
