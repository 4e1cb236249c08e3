"""`lora-scripts chat`: a conversation with a language model and LoRAs on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.chat.thoughts import Spoken, without
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Note, Sink, ignore

if TYPE_CHECKING:
    from lora_scripts.data.texts.conversations import Message
    from lora_scripts.families.texts import Answer, Answering, TextFamily

NAME_ONE = "--template names one: chatml, alpaca, or a .jinja file"
BARE = "the model has no chat template, so it goes on with each message as it stands and sees nothing else"
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
        return self._answer([*self.messages, {"role": "user", "content": text}], tell, seed)

    @property
    def bare(self) -> bool:
        """Whether there is no chat template, so that neither system prompt nor history is told to the model."""
        return self.model.template_text(self.template) is None

    @property
    def answered(self) -> bool:
        """Whether something was answered since the conversation began."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def again(self, tell: Callable[[str], None] | None = None, *, seed: int = 0) -> Answer:
        """Another answer in place of the last one, which stays where this is refused, as by `ask`."""
        assert self.answered
        return self._answer(self.messages[:-1], tell, seed)

    def _answer(self, talk: list[Message], tell: Callable[[str], None] | None, seed: int) -> Answer:
        answering = replace(self.answering, seed=self.answering.seed + seed)
        spoken = Spoken(tell) if tell else None
        answer = self.model.answer(talk, answering, spoken, template=self.template)
        if spoken:
            spoken.end()
        answer = replace(answer, text=without(answer.text))
        self.messages = [*talk, {"role": "assistant", "content": answer.text}]
        self.turns.append(Turn(talk[-1]["content"], answer.text, answer.tokens, answer.stopped))
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
    once: bool = False,
    device: str = "auto",
    precision: str = "auto",
    sink: Sink = ignore,
) -> Chatted:
    """Answers each line that `lines` gives, until that is None. UserErrors for what is wrong with the files.

    With `once` there is nobody to correct a line: no line is a command, and a UserError says why one is not answered.
    """
    from lora_scripts.families.texts import Answering
    from lora_scripts.loras import on_texts

    on_texts.check(base, loras)
    model = on_texts.load_on(base, device, precision)
    on_texts.wear(model, loras)
    template = on_texts.template_of(template, loras)
    session = Session(model, Answering(max_tokens, temperature, top_p, seed, think), system, template)
    if session.bare:
        if system:
            raise UserError(f"--system does nothing: {BARE}", hint=NAME_ONE)
        sink(Note(f"({BARE}; {NAME_ONE})"))
    again = 0

    def tell(piece: str) -> None:
        sink(Piece(piece))

    while (line := lines()) is not None:
        text = line.strip()
        if text == "/quit" and not once:
            break
        again = again + 1 if text == "/again" and session.answered else 0
        if text.startswith("/") and not again and not once:
            _command(session, text, sink)
            continue
        if not text:
            continue
        try:
            answer = session.again(tell, seed=again) if again else session.ask(text, tell)
        except UserError as fault:
            if once:
                raise
            sink(Note(f"error: {fault}"))
            continue
        sink(Piece("\n"))
        if not answer.stopped:
            more = "--max-tokens gives it more" if answer.tokens >= max_tokens else "the model takes no more at once"
            sink(Note(f"(cut off after {answer.tokens} tokens; {more})"))
    return Chatted(tuple(session.turns))


def _command(session: Session, text: str, sink: Sink) -> None:
    word, _, rest = text.partition(" ")
    if word == "/new":
        session.reset(session.system)
        sink(Note("(a new conversation)"))
    elif word == "/again":
        sink(Note("(nothing was answered yet)"))
    elif word == "/system" and session.bare:
        sink(Note(f"({BARE})"))
    elif word == "/system":
        session.reset(rest.strip())
        sink(Note("(a new conversation with this system prompt)" if rest else "(a new conversation)"))
    else:
        sink(Note("\n".join(f"{command}: {meaning}" for command, meaning in COMMANDS.items())))
