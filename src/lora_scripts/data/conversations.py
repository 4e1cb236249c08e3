"""One record of a text data set, whatever its form: messages, ShareGPT, instruction, prompt and completion, or text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from lora_scripts.units import HALF
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


RATED = ("label", "kto_tag")
"""By which KTO's records (trl, LLaMA-Factory) say whether an answer is a good one."""
SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "call",
}
"""The speakers of ShareGPT files and of their descendants; "call" is an assistant that calls a function."""
QUESTIONS, ANSWERS = ("instruction", "question", "query", "input"), ("output", "response", "answer")
MORE = ("input", "context")
"""What stands below the question: Alpaca's key, and Dolly's."""
_MARKERS = {  # a key that a form cannot do without -> the form, in the order in which they are looked for
    "messages": "messages",
    "conversations": "conversations",
    "instruction": "instruction",
    "question": "instruction",
    "query": "instruction",
    "prompt": "prompt",
    "text": "text",
    "input": "instruction",
}
_READ = {  # form -> the keys that it has besides questions and answers
    "messages": ("messages", "system", "tools"),
    "conversations": ("conversations", "system", "tools"),
    "instruction": (*MORE, "system", "history"),
    "prompt": ("prompt", "completion", "tools"),
    "text": ("text",),
}
CONVERSATIONS = ("messages", "conversations", "instruction")
"""Forms that a chat template writes."""
FORMS = (*CONVERSATIONS, "prompt", "text")
WANTED = (
    "messages | conversations | instruction, input, output | prompt, completion | text: a record has the keys of one"
)


def form_of(value: Mapping[str, Any]) -> str | None:
    """The name of the form of a record, by its keys; None for none."""
    return next((form for key, form in _MARKERS.items() if value.get(key) is not None), None)


def unread(value: Mapping[str, Any]) -> list[str]:
    """The keys of a record of which nothing is learned: those that its form does not have."""
    value = _small(value)
    form = form_of(value) or ""
    own = set(_READ.get(form, ()))
    if form in ("instruction", "prompt"):
        pairs = (QUESTIONS if form == "instruction" else (), ("completion", *ANSWERS))
        own |= {*RATED} | {next((key for key in keys if value.get(key) is not None), "") for keys in pairs}
    return [key for key, said in value.items() if key not in own and said not in (None, "", [], {})]


def _small(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """With its keys in small letters, if it has a form only so: Question, Response."""
    if form_of(value) is not None:
        return value
    small = {str(key).strip().lower(): said for key, said in value.items()}
    return small if form_of(small) is not None and len(small) == len(value) else value


def read_record(value: object) -> tuple[str, Record]:
    """The form of a record and what it says. Raises RecordFault."""
    if not isinstance(value, dict):
        raise RecordFault(f"a record is an object with keys, not {kind_of(value)}", WANTED)
    value = _small(value)
    form = form_of(value)
    if {"chosen", "rejected"} <= value.keys() and form != "text" and not any(value.get(key) for key in ANSWERS):
        mend = "as completion" if form == "prompt" else "as output" if form == "instruction" else "as messages"
        raise RecordFault("a preference record (chosen, rejected)", f"keep the chosen answer, {mend}")
    if form is None:
        raise RecordFault(f"keys of no known form: {', '.join(map(str, value)) or 'none'}", WANTED)
    if form != "text" and (rated := next((key for key in RATED if str(value.get(key)).lower() == "false"), None)):
        raise RecordFault(f"an answer that is rated as bad ({rated}: false)", "remove it: every answer is learned")
    readers = {
        "messages": _of_messages,
        "conversations": _of_sharegpt,
        "instruction": _of_instruction,
        "prompt": _of_prompt,
        "text": _of_text,
    }
    record = readers[form](value)
    if HALF.search(_all_text(record)):
        raise RecordFault("holds half a character (a lone \\ud800 … \\udfff)", "write the file again, as UTF-8")
    return form, record


def _all_text(record: Record) -> str:
    match record:
        case Text(text):
            return text
        case Completion(prompt, completion):
            return prompt + completion
    return json.dumps([record.messages, record.tools], ensure_ascii=False, default=str)


# --- the forms --------------------------------------------------------------------------------------------------------


def _of_text(value: Mapping[str, Any]) -> Text:
    text = _text(value, "text")
    if not text.strip():
        raise RecordFault("the text is empty", "remove the record")
    return Text(text)


def _of_prompt(value: Mapping[str, Any]) -> Record:
    prompt, completion = value["prompt"], value.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(_checked([_message(m) for m in [*prompt, *completion]]), _tools(value))
    completion = next((key for key in ("completion", *ANSWERS) if value.get(key) is not None), "completion")
    said = _text(value, completion)
    if not said.strip():
        raise RecordFault(f"the {completion} is empty", "write it, or remove the record")
    return Completion(_text(value, "prompt"), said)


def _of_instruction(value: Mapping[str, Any]) -> Conversation:
    question = next(key for key in QUESTIONS if value.get(key) is not None)
    answer = next((key for key in ANSWERS if key in value), None)
    if answer is None:
        raise RecordFault(f"{question} without an answer", 'add the key "output"')
    asked = _text(value, question)
    more = [_text(value, key) for key in MORE if key != question and value.get(key)]
    messages = _system(value)
    for before, reply in _history(value):
        messages += [{"role": "user", "content": before}, {"role": "assistant", "content": reply}]
    if not "".join((asked, *more)).strip():
        raise RecordFault(f"the {question} is empty", "write it, or remove the record")
    messages.append({"role": "user", "content": "\n".join(part for part in (asked, *more) if part)})
    messages.append({"role": "assistant", "content": _text(value, answer)})
    return Conversation(_checked(messages))


def _history(value: Mapping[str, Any]) -> list[list[str]]:
    history = value.get("history") or []
    pairs = isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)
    if not pairs or not all(isinstance(text, str) for turn in history for text in turn):
        raise RecordFault('"history" is a list of pairs of texts, each what was asked and what was answered')
    return list(history)


def _of_messages(value: Mapping[str, Any]) -> Conversation:
    rows = _parsed(value["messages"], "messages")
    return Conversation(_checked([*_system(value), *map(_message, rows)]), _tools(value))


def _system(value: Mapping[str, Any]) -> list[Message]:
    """The system prompt that stands beside the turns, if one does."""
    return [{"role": "system", "content": _text(value, "system")}] if value.get("system") else []


def _of_sharegpt(value: Mapping[str, Any]) -> Conversation:
    messages = _system(value)
    for row in _parsed(value["conversations"], "conversations"):
        if not isinstance(row, dict):
            raise RecordFault(f"a turn is an object with from and value, not {kind_of(row)}")
        if "role" in row and "from" not in row:
            messages.append(_message(row))
            continue
        speaker = SHAREGPT_ROLES.get(str(row.get("from")).lower())
        if speaker is None:
            raise RecordFault(
                f'nobody is called "{row.get("from")}" in a conversation', "use human, gpt, system or tool"
            )
        if speaker == "call":
            call = _json(_text(row, "value"), "a function_call")
            calls = call if isinstance(call, list) else [call]
            turn: Message = {"role": "assistant", "content": "", "tool_calls": _calls(calls)}
        else:
            turn = {"role": speaker, "content": _text(row, "value")}
        messages.append(turn | {key: row[key] for key in ("weight", "train") if row.get(key) is not None})
    return Conversation(_checked(messages), _tools(value))


def _parsed(value: object, key: str) -> list[Any]:
    """A list, also where a CSV cell holds it as JSON."""
    value = _json(value, f'"{key}"') if isinstance(value, str) else value
    if not isinstance(value, list):
        raise RecordFault(f'"{key}" is a list of turns, not {kind_of(value)}')
    return value


def _json(text: object, what: str) -> Any:
    try:
        return load_json(str(text))
    except ValueError as error:
        raise RecordFault(f"{what} is not JSON: {error}") from None


def _text(value: Mapping[str, Any], key: str) -> str:
    said = value.get(key)
    if not isinstance(said, str):
        raise RecordFault(f'"{key}" is {kind_of(said)}, not text')
    return said


# --- messages ---------------------------------------------------------------------------------------------------------


def is_learned(message: Message) -> bool:
    """Whether an answer is one to learn: OpenAI's `weight: 0` and axolotl's `train: false` say that it is not."""
    return bool(message.get("weight", 1)) and bool(message.get("train", True))


def _message(row: object) -> Message:
    """A message with its text as one text, and calls as the templates read them."""
    if not isinstance(row, dict) or not isinstance(row.get("role"), str):
        raise RecordFault("a message is an object with role and content")
    if row["role"] not in ROLES:
        raise RecordFault(f'nobody has the role "{row["role"]}"', f"roles are {', '.join(ROLES)}")
    message = {key: item for key, item in row.items() if item is not None}
    content = row.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise RecordFault("a message with pictures or sounds", "only text is trained; remove the record")
        content = "".join(_text(part, "text") for part in content)
    if content is not None and not isinstance(content, str):
        raise RecordFault(f'"content" is {kind_of(content)}, not text')
    message["content"] = content or ""
    if row.get("tool_calls"):
        if not isinstance(row["tool_calls"], list):
            raise RecordFault('"tool_calls" is a list')
        message["tool_calls"] = _calls(row["tool_calls"])
    else:
        message.pop("tool_calls", None)
    return message


def _calls(calls: Sequence[object]) -> list[dict[str, Any]]:
    """Calls as {"type": "function", "function": {"name", "arguments": {…}}}, which every template takes."""
    out = []
    for call in calls:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise RecordFault("a tool call without a name")
        arguments = inner.get("arguments", {})
        arguments = _json(arguments, f'the arguments of "{inner["name"]}"') if isinstance(arguments, str) else arguments
        more = {"id": call["id"]} if isinstance(call, dict) and "id" in call else {}
        out.append(more | {"type": "function", "function": {"name": inner["name"], "arguments": arguments}})
    return out


def _tools(value: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    tools = value.get("tools") or []
    tools = _json(tools, '"tools"') if isinstance(tools, str) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordFault('"tools" is a list of JSON schemas')
    return tuple(tools)


def _checked(messages: list[Message]) -> tuple[Message, ...]:
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
