"""What a record of a text data set says: turns of a conversation, a beginning and how it goes on, or running text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from lora_scripts.utf8 import kind_of, load_json

Message: TypeAlias = dict[str, Any]
"""`role` and `content`, and what a template may read besides: `reasoning_content`, `tool_calls`, `name`."""


@dataclass(frozen=True)
class Conversation:
    """What was said in turn, as a chat template takes it."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """The functions that the assistant may call, as JSON schemas."""


@dataclass(frozen=True)
class Completion:
    """A beginning, and how it goes on."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Running text, all of which is trained; a long document comes in several."""

    text: str
    begins: bool = True
    """It is the first piece of its document."""
    ends: bool = True
    """It is the last piece of its document."""


Record: TypeAlias = Conversation | Completion | Text


class RecordFault(Exception):
    """What is wrong with one record, and the mend; whoever knows the file and the line makes a UserError of it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message, self.hint = message, hint
        super().__init__(message)


SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")


def is_learned(message: Message) -> bool:
    """Whether an answer is one to learn: OpenAI's `weight: 0` and axolotl's `train: false` say that it is not."""
    return bool(message.get("weight", 1)) and bool(message.get("train", True))


def message_of(row: object) -> Message:
    """A message with its text as one text, and calls as the templates read them. Raises RecordFault."""
    if not isinstance(row, dict) or not isinstance(row.get("role"), str):
        raise RecordFault("a message is an object with role and content")
    if row["role"] not in ROLES:
        raise RecordFault(f'nobody has the role "{row["role"]}"', f"roles are {', '.join(ROLES)}")
    message = {key: item for key, item in row.items() if item is not None}
    content = row.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise RecordFault("a message with pictures or sounds", "only text is trained; remove the record")
        content = "".join(text_at(part, "text") for part in content)
    if content is not None and not isinstance(content, str):
        raise RecordFault(f'"content" is {kind_of(content)}, not text')
    message["content"] = content or ""
    if row.get("tool_calls"):
        if not isinstance(row["tool_calls"], list):
            raise RecordFault('"tool_calls" is a list')
        message["tool_calls"] = calls_of(row["tool_calls"])
    else:
        message.pop("tool_calls", None)
    return message


def calls_of(calls: Sequence[object]) -> list[dict[str, Any]]:
    """As {"type": "function", "function": {"name", "arguments": {…}}}, as every template takes it.

    Raises RecordFault.
    """
    out = []
    for call in calls:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise RecordFault("a tool call without a name")
        arguments = inner.get("arguments", {})
        arguments = (
            parsed(arguments, f'the arguments of "{inner["name"]}"') if isinstance(arguments, str) else arguments
        )
        more = {"id": call["id"]} if isinstance(call, dict) and "id" in call else {}
        out.append(more | {"type": "function", "function": {"name": inner["name"], "arguments": arguments}})
    return out


def tools_of(value: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The `tools` of a record, also where a CSV cell holds them as JSON. Raises RecordFault."""
    tools = value.get("tools") or []
    tools = parsed(tools, '"tools"') if isinstance(tools, str) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordFault('"tools" is a list of JSON schemas')
    return tuple(tools)


def in_turn(messages: list[Message]) -> tuple[Message, ...]:
    """The messages, if they follow one another as a conversation does. Raises RecordFault."""
    if not messages:
        raise RecordFault("the conversation is empty", "remove the record")
    if messages[0] in messages[1:2] and messages[0]["role"] in SYSTEM_ROLES:  # beside the turns, and among them
        messages = messages[1:]
    turns = [m for m in messages if m["role"] not in SYSTEM_ROLES]
    if any(m["role"] in SYSTEM_ROLES for m in messages[1:]):
        raise RecordFault("a system prompt in the middle of the conversation", "put it first, and only once")
    for before, after in pairwise(turns):
        if before["role"] == after["role"] != "tool":
            raise RecordFault(
                f"the role {after['role']} twice in a row", "put the two together, or add what is missing"
            )
        if after["role"] == "tool" and not (before["role"] == "tool" or before.get("tool_calls")):
            raise RecordFault("a tool answers, but was not called", 'the assistant before it wants "tool_calls"')
    if not any(m["role"] == "assistant" for m in turns):
        raise RecordFault("nothing is answered: no turn of the assistant", "add the answer, or remove the record")
    for key, kept in (("weight", (0, 1)), ("train", (True, False))):
        if strange := next((m[key] for m in turns if m.get(key, kept[0]) not in kept), None):
            raise RecordFault(f'"{key}" of a turn is {strange!r}', f"write {kept[0]} or {kept[1]}".lower())
    if not any(m["role"] == "assistant" and is_learned(m) for m in turns):
        raise RecordFault("no answer of it is to be learned (weight: 0)", "remove the record")
    if turns[-1]["role"] != "assistant":
        raise RecordFault(f"ends with the {turns[-1]['role']}'s turn", "add the answer, or remove that turn")
    for message in turns:
        if not message["content"].strip() and not message.get("tool_calls"):
            if message["role"] == "assistant":
                raise RecordFault("an empty answer", "write it, or remove the record")
            if message["role"] == "user":
                raise RecordFault("an empty question", "write it, or remove the record")
    return tuple(messages)


# --- values of a record -----------------------------------------------------------------------------------------------


def turns_in(value: object, key: str) -> list[Any]:
    """A list, also where a CSV cell holds it as JSON. Raises RecordFault."""
    value = parsed(value, f'"{key}"') if isinstance(value, str) else value
    if not isinstance(value, list):
        raise RecordFault(f'"{key}" is a list of turns, not {kind_of(value)}')
    return value


def parsed(text: object, what: str) -> Any:
    """JSON in a text; `what` it is, for the RecordFault of what is none."""
    try:
        return load_json(str(text))
    except ValueError as error:
        raise RecordFault(f"{what} is not JSON: {error}") from None


def text_at(value: Mapping[str, Any], key: str) -> str:
    """The text of a key. Raises RecordFault for anything else."""
    said = value.get(key)
    if not isinstance(said, str):
        raise RecordFault(f'"{key}" is {kind_of(said)}, not text')
    return said
