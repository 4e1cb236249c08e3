"""An Ollama Modelfile whose template writes what the chat template writes, found by writing conversations with it.

Ollama has a template language of its own (Go's). What stands before and behind what each role says is read off from
conversations that are rendered by the model's own template; then more are rendered both ways, and must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_scripts.data.texts.conversations import Message, RecordFault
from lora_scripts.families.causal_lm.template import NOT_THINKING, Template

_SYSTEM, _USER, _ANSWER = "\x01S\x01", "\x01U\x01", "\x01A\x01"


@dataclass(frozen=True)
class Frame:
    """What a template writes around what is said, for conversations without tools."""

    opening: str
    """Before all, where there is no system prompt."""
    system: tuple[str, str] | None
    """Before and behind a system prompt; None where the template takes none, or writes it into the first question."""
    user: tuple[str, str]
    assistant: tuple[str, str]

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation that ends with the user's turn, up to where the answer begins: what `go` says."""
        system = next((m["content"] for m in messages if m["role"] == "system"), "")
        text = self.opening if not system or self.system is None else system.join(self.system)
        for message in messages:
            if message["role"] == "user":
                text += message["content"].join(self.user)
            elif message["role"] == "assistant":
                text += message["content"].join(self.assistant)
        return text + self.assistant[0]

    @property
    def go(self) -> str:
        """The same as a template of Go."""
        head = _go(self.opening)
        if self.system is not None:
            before, behind = map(_go, self.system)
            head = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{behind}{{{{ else }}}}{head}{{{{ end }}}}"
        user, answer = (f"{_go(a)}{{{{ .Content }}}}{_go(b)}" for a, b in (self.user, self.assistant))
        roles = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
        return f"{head}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{_go(self.assistant[0])}"


def modelfile(template: Template, stops: Sequence[str]) -> str | None:
    """The Modelfile of a folder that it lies in; None where Ollama's templates cannot say what this one does."""
    frame = frame_of(template)
    if frame is None:
        return None
    lines = ["# ollama create NAME -f Modelfile", "FROM .", f'TEMPLATE """{frame.go}"""']
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def frame_of(template: Template) -> Frame | None:
    """None where no frame writes what the template writes."""
    for more in ({}, NOT_THINKING):  # the prompt for an answer may open a thought, which the history does not have
        try:
            whole = _read_off(template, dict(more))
        except (RecordFault, ValueError):
            continue
        for frame in (whole, replace(whole, system=None)):  # some put the system prompt into the first question
            if all(_same(frame, template, messages, dict(more)) for messages in _talks(frame.system is not None)):
                return frame
    return None


def _read_off(template: Template, more: dict[str, Any]) -> Frame:
    """Raises ValueError where the parts do not stand in their order."""
    user: Message = {"role": "user", "content": _USER}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    one = _bare(template.render([user], prompt=True, **more), template)
    two = _bare(template.render([user, answer, user], prompt=True, **more), template)
    opening_and_user, user_to_prompt = one.split(_USER)
    first, user_to_answer, rest = _split(two)
    if first != opening_and_user or not user_to_answer:
        raise ValueError("the beginning is written otherwise")
    answer_to_user, last = rest.split(_USER)
    if last != user_to_prompt:
        raise ValueError("the last turn is written otherwise")
    # What stands behind the user, and before the answer, cannot be told apart, nor need it be.
    shared = _common_end(answer_to_user, opening_and_user)
    before_user, opening = shared, opening_and_user[: len(opening_and_user) - len(shared)]
    behind_answer = answer_to_user[: len(answer_to_user) - len(shared)]
    if user_to_answer != user_to_prompt:
        raise ValueError("the prompt for an answer is not how answers begin")
    system = None
    try:
        with_system = template.render([{"role": "system", "content": _SYSTEM}, user], prompt=True, **more)
    except RecordFault:
        with_system = ""
    if _SYSTEM in with_system:
        before, behind = with_system.split(_SYSTEM)
        behind = behind[: behind.index(_USER)].removesuffix(before_user)
        system = (_bare(before, template), behind)
    return Frame(opening, system, (before_user, ""), (user_to_answer, behind_answer))


def _split(text: str) -> tuple[str, str, str]:
    first, rest = text.split(_USER, 1)
    middle, last = rest.split(_ANSWER)
    return first, middle, last


def _common_end(a: str, b: str) -> str:
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return a[len(a) - count :]


def _bare(text: str, template: Template) -> str:
    """Without the token that begins a text: Ollama puts it there itself."""
    return text.removeprefix(template.tokenizer.bos_token or "")


def _talks(system: bool) -> list[list[Message]]:
    said = ["Hello, you!", "What is 2 + 2?\n", "x <|y|> {{ z }}"]
    turns: list[Message] = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": said[i % 3].strip()} for i in range(5)
    ]
    talks = [turns[:1], turns[:3], turns]
    return talks + ([[{"role": "system", "content": "Be brief."}, *talk] for talk in talks] if system else [])


def _same(frame: Frame, template: Template, messages: Sequence[Message], more: dict[str, Any]) -> bool:
    try:
        return frame.render(messages) == _bare(template.render(messages, prompt=True, **more), template)
    except RecordFault:
        return False


def _go(text: str) -> str:
    """Text as it stands in a template of Go."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
