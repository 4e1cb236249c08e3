"""The prompts of a file: conversations that a model is to go on with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.data.texts.conversations import (
    SYSTEM_ROLES,
    Message,
    RecordFault,
    message_of,
    tools_of,
    turns_in,
)
from lora_scripts.data.texts.record_index import LINES
from lora_scripts.errors import UserError, raise_all
from lora_scripts.units import HALF
from lora_scripts.utf8 import load_json, read_lines

NOT_PROMPTS = (".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Files of records whose lines are no prompts."""
_WANTED = 'write {"prompt": "…"} or {"messages": […]} that ends with the user'


@dataclass(frozen=True)
class Talk:
    """One conversation up to where an answer is wanted."""

    line: int
    messages: list[Message]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> str:
        """What was said last."""
        said: str = self.messages[-1]["content"]
        return said


def read_talks(source: Path, system: str = "") -> list[Talk]:
    """The conversations that are to be gone on with: of a .jsonl file a line with "prompt" or "messages" each, else a
    line of text each. UserErrors with file and line."""
    if source.suffix.lower() in NOT_PROMPTS:
        hint = "write one a line into a .txt file, or lines of JSON into a .jsonl file"
        raise UserError(f"prompts are not read from {source.suffix} files", file=source, hint=hint)
    as_json = source.suffix.lower() in LINES
    talks: list[Talk] = []
    faults: list[UserError] = []
    for number, line in enumerate(read_lines(source, pipe=True), 1):
        if not line.strip():
            continue
        try:
            talk = _asked(line, number) if as_json else Talk(number, [{"role": "user", "content": line.strip()}])
        except RecordFault as fault:
            faults.append(UserError(fault.message, file=source, line=number, hint=fault.hint))
            continue
        if system and talk.messages[0]["role"] not in SYSTEM_ROLES:
            talk.messages.insert(0, {"role": "system", "content": system})
        talks.append(talk)
    if not talks and not faults:
        faults.append(UserError("holds no prompt", file=source, hint="write one a line"))
    raise_all(faults)
    return talks


def _asked(line: str, number: int) -> Talk:
    """Of one line of JSON. Raises RecordFault where it asks nothing."""
    try:
        row = load_json(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise RecordFault("no prompt", _WANTED)
    if HALF.search(json.dumps(row, ensure_ascii=False)):
        raise RecordFault("holds half a character (a lone \\ud800 … \\udfff)", "write the file again, as UTF-8")
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        return Talk(number, [{"role": "user", "content": row["prompt"]}], tools_of(row))
    messages = [message_of(message) for message in turns_in(row.get("messages") or [], "messages")]
    if not messages or messages[-1]["role"] not in ("user", "tool") or not messages[-1]["content"].strip():
        raise RecordFault("no prompt", _WANTED)
    return Talk(number, messages, tools_of(row))
