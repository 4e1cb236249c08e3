"""Forms of records: messages, ShareGPT, instruction, prompt and completion, or text; by their keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_scripts.data.texts.conversations import (
    Completion,
    Conversation,
    Message,
    Record,
    RecordFault,
    Text,
    calls_of,
    in_turn,
    message_of,
    parsed,
    text_at,
    tools_of,
    turns_in,
)
from lora_scripts.units import HALF
from lora_scripts.utf8 import kind_of

RATED = ("label", "kto_tag")
"""By which KTO's records (trl, LLaMA-Factory) say whether an answer is a good one."""
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
    text = text_at(value, "text")
    if not text.strip():
        raise RecordFault("the text is empty", "remove the record")
    return Text(text)


def _of_prompt(value: Mapping[str, Any]) -> Record:
    prompt, completion = value["prompt"], value.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(in_turn([message_of(m) for m in [*prompt, *completion]]), tools_of(value))
    completion = next((key for key in ("completion", *ANSWERS) if value.get(key) is not None), "completion")
    said = text_at(value, completion)
    if not said.strip():
        raise RecordFault(f"the {completion} is empty", "write it, or remove the record")
    return Completion(text_at(value, "prompt"), said)


def _of_instruction(value: Mapping[str, Any]) -> Conversation:
    question = next(key for key in QUESTIONS if value.get(key) is not None)
    answer = next((key for key in ANSWERS if key in value), None)
    if answer is None:
        raise RecordFault(f"{question} without an answer", 'add the key "output"')
    asked = text_at(value, question)
    more = [text_at(value, key) for key in MORE if key != question and value.get(key)]
    messages = _system(value)
    for before, reply in _history(value):
        messages += [{"role": "user", "content": before}, {"role": "assistant", "content": reply}]
    if not "".join((asked, *more)).strip():
        raise RecordFault(f"the {question} is empty", "write it, or remove the record")
    messages.append({"role": "user", "content": "\n".join(part for part in (asked, *more) if part)})
    messages.append({"role": "assistant", "content": text_at(value, answer)})
    return Conversation(in_turn(messages))


def _history(value: Mapping[str, Any]) -> list[list[str]]:
    history = value.get("history") or []
    pairs = isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)
    if not pairs or not all(isinstance(text, str) for turn in history for text in turn):
        raise RecordFault('"history" is a list of pairs of texts, each what was asked and what was answered')
    return list(history)


def _of_messages(value: Mapping[str, Any]) -> Conversation:
    rows = turns_in(value["messages"], "messages")
    return Conversation(in_turn([*_system(value), *map(message_of, rows)]), tools_of(value))


def _system(value: Mapping[str, Any]) -> list[Message]:
    """The system prompt that stands beside the turns, if one does."""
    return [{"role": "system", "content": text_at(value, "system")}] if value.get("system") else []


def _of_sharegpt(value: Mapping[str, Any]) -> Conversation:
    messages = _system(value)
    for row in turns_in(value["conversations"], "conversations"):
        if not isinstance(row, dict):
            raise RecordFault(f"a turn is an object with from and value, not {kind_of(row)}")
        if "role" in row and "from" not in row:
            messages.append(message_of(row))
            continue
        speaker = SHAREGPT_ROLES.get(str(row.get("from")).lower())
        if speaker is None:
            raise RecordFault(
                f'nobody is called "{row.get("from")}" in a conversation', "use human, gpt, system or tool"
            )
        if speaker == "call":
            call = parsed(text_at(row, "value"), "a function_call")
            calls = call if isinstance(call, list) else [call]
            turn: Message = {"role": "assistant", "content": "", "tool_calls": calls_of(calls)}
        else:
            turn = {"role": speaker, "content": text_at(row, "value")}
        messages.append(turn | {key: row[key] for key in ("weight", "train") if row.get(key) is not None})
    return Conversation(in_turn(messages), tools_of(value))
