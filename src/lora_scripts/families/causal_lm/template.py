"""Chat templates: a conversation as the text that the model reads, and which of its characters the model would write.

A template says how it writes a conversation, not which part of that is the answer. Where it has the marks
`{% generation %}` … `{% endgeneration %}`, those say it. Where not, as with nearly every published model, the answer is
found by rendering the beginnings of the conversation: what stands between the prompt for an answer and the text with
the answer is what the model would write. That is believed only where each beginning is one indeed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_scripts.data.texts.conversations import SYSTEM_ROLES, Conversation, Message, RecordFault, is_learned
from lora_scripts.errors import UserError
from lora_scripts.utf8 import read_text

NAMED = {
    "chatml": (
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "alpaca": (
        "{{- bos_token }}"
        "{%- for message in messages %}"
        "{%- if message.role == 'system' %}{{- message.content + '\\n\\n' }}"
        "{%- elif message.role == 'assistant' %}{{- '### Response:\\n' + message.content + eos_token + '\\n\\n' }}"
        "{%- else %}{{- '### Instruction:\\n' + message.content + '\\n\\n' }}{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}"
    ),
}
"""Templates by name, for models that have none: ChatML, and the text form of Alpaca (Taori et al. 2023)."""
NO_DATE = (
    "{%- macro strftime_now(format) -%}"
    "{%- if format == '%d %b %Y' -%}01 Jan 2025{%- else -%}2025-01-01{%- endif -%}"
    "{%- endmacro %}{{- '' }}"
)
"""What templates that write down the date take for today: a record must give the same tokens on every day."""
NOT_THINKING: Mapping[str, Any] = {"enable_thinking": False}
_NO_TOOLS = "it was made for a model without tools; remove the record, or name another chat_template"
_SIGN = re.compile(r"<\|[^|<>]{1,40}\|>")
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""From a character, up to but without another."""


@dataclass(frozen=True)
class Rendered:
    """A conversation, or a beginning of it, as text."""

    text: str
    answers: tuple[Span, ...]
    """What the model would write: each answer with the sign that ends its turn."""


@dataclass
class Template:
    """A chat template of a tokenizer."""

    tokenizer: Any
    source: str
    """Jinja."""
    beginnings: Counter[str] = field(default_factory=Counter, init=False)
    """How the answers so far begin: as the prompt for an answer ("prompt"), as that of a model which shall not think
    ("not_thinking"), or as neither ("other")."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), *, prompt: bool = False, **more: Any
    ) -> str:
        """The text of a conversation; with `prompt` up to where an answer begins. `more` is for the template.

        Raises RecordFault with the template's own complaint in the message.
        """
        return self._rendered(messages, tools, prompt=prompt, **more)[0]

    def divide(self, conversation: Conversation) -> list[Rendered]:
        """The conversation with its answers; in several parts where the template rewrites what was said before.

        Qwen3's takes the thoughts out of earlier answers: an answer then reads otherwise in the history than the model
        wrote it. Such a one is trained in a part of its own, which ends with it, as the model saw it. Raises
        RecordFault where the template refuses the conversation, or where nothing in it is an answer.
        """
        messages, tools = conversation.messages, conversation.tools
        if _MARKS.search(self.source) and all(map(is_learned, messages)):
            text, spans = self._rendered(messages, tools, marks=True)
            parts = [Rendered(text, _joined(spans))]
        else:
            parts = self._by_beginnings(messages, tools)
        if not any(part.answers for part in parts):
            raise RecordFault("the chat template shows no answer, so nothing would be trained", "see chat_template")
        nothing_left_out(messages, tools, parts[-1].text)
        return parts

    @cached_property
    def _in_parts(self) -> bool:
        """Whether what is said must be a list of parts, as LLaVA and SmolVLM have it: of a text they write nothing."""
        said = "What is it?"
        for parts in (False, True):
            try:
                if said in self._written([{"role": "user", "content": said}], parts=parts)[0]:
                    return parts
            except RecordFault:
                continue
        return False

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token by which an answer ends, as far as the template shows: the first special one behind it.

        Not all templates write it themselves: after GLM's answers stands the sign that begins the next turn.
        """
        said = "Yes"
        ask: Message = {"role": "user", "content": "Well?"}
        talk = [ask, {"role": "assistant", "content": said}, ask]
        try:
            before, after = self.render(talk[:1], prompt=True), self.render(talk)
        except RecordFault:
            return None
        at = after.find(said, _shared(before, after))
        behind = self._tokens(after[at + len(said) :]) if at >= 0 else []
        return next((token for token, _, _ in behind if token in self._special), None)

    def _by_beginnings(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[Rendered]:
        """From the last answer to the first: each into the part that holds it as it was written, or into its own."""
        parts: list[tuple[str, list[Span]]] = []
        for i in range(len(messages) - 1, 0, -1):
            if messages[i]["role"] != "assistant" or not is_learned(messages[i]):
                continue
            after = self.render(messages[: i + 1], tools)
            start = self._start(messages[:i], tools, after)
            if any(call["function"]["name"] not in after[start:] for call in messages[i].get("tool_calls", ())):
                raise RecordFault("the chat template leaves tool calls out", _NO_TOOLS)
            end = self._end(messages[i], after, start, parts[-1][0]) if parts else None
            if end is None:
                parts.append((after, [(start, len(after))]))
            else:
                parts[-1][1].append((start, end))
        return [Rendered(text, tuple(sorted(spans))) for text, spans in reversed(parts)]

    def _start(self, asked: Sequence[Message], tools: Sequence[Any], after: str) -> int:
        """Where the answer begins in `after`: at the end of the prompt for it, with or without an empty thought."""
        prompt = self.render(asked, tools, prompt=True)
        if after.startswith(prompt):
            self.beginnings["prompt"] += 1
            return len(prompt)
        without = self.render(asked, tools, prompt=True, **NOT_THINKING)
        if after.startswith(without):
            self.beginnings["not_thinking"] += 1
            return len(without)
        self.beginnings["other"] += 1
        return self._boundary(after, _shared(prompt, after))

    def _end(self, message: Message, after: str, start: int, text: str) -> int | None:
        """Where the answer that ends `after` ends in the longer `text`; None if it is not there as it was written."""
        shared = _shared(after, text)
        content = _end_of(message, after, start)
        if shared < content:
            return None
        end = shared if shared == len(after) else max(self._boundary(text, shared), content)
        if any(token in self._special for token, first, _ in self._tokens(text[content:end])):
            return end
        following = self._tokens(text[end:])[
            :1
        ]  # the end of a turn may look otherwise in the middle: <|end|>, <|return|>
        return end + following[0][2] if following and following[0][0] in self._special else end

    def _boundary(self, text: str, at: int) -> int:
        """The last place up to `at` where a token begins."""
        return max((first for _, first, last in self._tokens(text) if first <= at < last), default=at)

    def _tokens(self, text: str) -> list[tuple[int, int, int]]:
        """(token, first character, character behind the last)"""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(token, *place) for token, place in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset({token for token, text in added.items() if text.special} | set(self.tokenizer.all_special_ids))

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any],
        *,
        prompt: bool = False,
        marks: bool = False,
        **more: Any,
    ) -> tuple[str, list[Span]]:
        return self._written(messages, tools, prompt=prompt, marks=marks, parts=self._in_parts, **more)

    def _written(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        *,
        prompt: bool = False,
        marks: bool = False,
        parts: bool,
        **more: Any,
    ) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        source = NO_DATE + self.source if "strftime_now" in self.source else self.source
        given = [dict(message) for message in messages]
        for message in given if parts else ():
            message["content"] = [{"type": "text", "text": message["content"]}]
        try:
            texts, spans = render_jinja_template(
                conversations=[given],
                tools=list(tools) or None,
                chat_template=source,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **{"bos_token": "", "eos_token": ""} | self.tokenizer.special_tokens_map | more,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            hint = "put the system prompt into the first question" if "ystem" in reason else "see chat_template"
            raise RecordFault(f"the chat template refuses it: {reason}", hint) from None
        return texts[0], [tuple(span) for span in spans[0]] if marks else []


def template_of(named: str | None, tokenizer: Any) -> Template | None:
    """The tokenizer's own chat template, or that of a name or a .jinja file; None where it has none.

    UserError for a name that is none, or a template whose signs the tokenizer does not have.
    """
    if named is not None:
        return named_template(named, tokenizer)
    try:
        return Template(tokenizer, tokenizer.get_chat_template())
    except ValueError:
        return None


def named_template(named: str, tokenizer: Any) -> Template:
    """A template by its name in NAMED, or from a .jinja file. UserError for one that is neither, or does not fit."""
    source = NAMED.get(named, "")
    if not source:
        path = Path(named)
        if path.suffix != ".jinja":
            hint = f"it is {', '.join(NAMED)}, or a .jinja file"
            raise UserError(f"chat_template: there is none of the name {named}", hint=hint)
        source = read_text(path)
    lacking = [sign for sign in dict.fromkeys(_SIGN.findall(source)) if sign not in tokenizer.added_tokens_encoder]
    if lacking:
        message = f"chat_template {named}: the tokenizer does not know {', '.join(lacking)} as one token"
        raise UserError(message, hint="take chat_template: alpaca, which needs none")
    return Template(tokenizer, source)


def nothing_left_out(messages: Sequence[Message], tools: Sequence[Any], text: str) -> None:
    """RecordFault where a template that takes no system prompt, or no tools, passes over one without a word."""
    said = [m["content"].strip() for m in messages if m["role"] in SYSTEM_ROLES]
    if not all(one in text for one in said):
        hint = "put it into the first question, or name another chat_template"
        raise RecordFault("the chat template leaves the system prompt out", hint)
    functions = [tool.get("function", tool) for tool in tools]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    if not all(name in text for name in names if isinstance(name, str)):
        raise RecordFault("the chat template leaves the tools out", _NO_TOOLS)


def _end_of(message: Message, after: str, start: int) -> int:
    """Where the content of an answer ends in `after`, at the latest; its calls come after it."""
    said = message["content"].strip()
    at = after.rfind(said, start) if said else -1
    end = at + len(said) if at >= 0 else start
    for call in message.get("tool_calls", ()):
        name = call["function"]["name"]
        at = after.rfind(name, start)
        end = max(end, at + len(name)) if at >= 0 else len(after)
    return end


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common from the start."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 (texts, not paths)


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans that touch become one; empty ones are left out."""
    out: list[Span] = []
    for first, last in spans:
        if out and out[-1][1] == first:
            out[-1] = (out[-1][0], last)
        elif first < last:
            out.append((first, last))
    return tuple(out)
