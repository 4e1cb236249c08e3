"""`lora-scripts chat --from-file`: every prompt of a file answered, each in a conversation of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Progress, Saved, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.utf8 import load_json, read_lines

if TYPE_CHECKING:
    from lora_scripts.data.texts.conversations import Message
    from lora_scripts.families.texts import Answering

Row = dict[str, Any]
"""A line of the file: prompt, answer, and whether it ended by itself."""
AT_ONCE = 8
"""Prompts that are answered together."""


@dataclass(frozen=True)
class Answered:
    """What a file of prompts has become."""

    output: Path
    """JSON lines: prompt, answer, and whether it ended by itself."""
    prompts: int
    stopped: int
    """Answers that ended by themselves."""


def answer_file(
    base: Path,
    loras: Sequence[tuple[Path, float]],
    source: Path,
    output: Path | None,
    *,
    system: str = "",
    template: str | None = None,
    answering: Answering,
    resume: bool = False,
    device: str = "auto",
    precision: str = "auto",
    sink: Sink = ignore,
) -> Answered:
    """Answers each prompt and writes the answers as they come; with `resume` those that are not in `output` yet.
    UserErrors for what is wrong with the files, at once."""
    from lora_scripts.loras import on_texts

    output = output or source.with_name(f"{source.stem}-answers.jsonl")
    if output.exists() and not resume:
        hint = "add --resume to go on with it, give --output another name, or remove it"
        raise UserError("is there already", file=output, hint=hint)
    talks = read_talks(source, system)
    rows = read_answers(output, talks) if output.exists() else []
    if len(rows) == len(talks):
        return Answered(output, len(talks), _ended(rows))
    on_texts.check(base, loras)
    model = on_texts.load_on(base, device, precision)
    on_texts.wear(model, loras)
    template = on_texts.template_of(template, loras)
    raise_all(
        UserError(f"prompt {number} is so long that the model has no place for an answer", file=source)
        for number, talk in enumerate(talks, 1)
        if (room := model.room(talk, template=template)) is not None and room < 1
    )
    for start in range(len(rows), len(talks), AT_ONCE):
        some = talks[start : start + AT_ONCE]
        for talk, answer in zip(some, model.answers(some, answering, template=template), strict=True):
            rows.append({"prompt": talk[-1]["content"], "answer": answer.text, "stopped": answer.stopped})
        io.write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        sink(Progress("prompts", len(rows), len(talks)))
    sink(Saved("answers", output))
    return Answered(output, len(talks), _ended(rows))


def read_answers(output: Path, talks: Sequence[Sequence[Message]]) -> list[Row]:
    """What a command that was stopped had written of these conversations. UserError where it is of others."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(output), 1):
        if not line.strip():
            continue
        row = _answer(line)
        prompt = talks[len(rows)][-1]["content"] if len(rows) < len(talks) else None
        if row is None or row["prompt"] != prompt:
            text = "answers no prompt of the file" if row else "no answer as chat writes it"
            hint = "give --output another name, or leave --resume out"
            raise UserError(text, file=output, line=number, hint=hint)
        rows.append(row)
    return rows


def _answer(line: str) -> Row | None:
    row, kinds = _object(line), {"prompt": str, "answer": str, "stopped": bool}
    return row if all(isinstance(row.get(key), kind) for key, kind in kinds.items()) else None


def _ended(rows: Sequence[Row]) -> int:
    """How many answers ended by themselves."""
    return sum(row["stopped"] for row in rows)


def read_talks(source: Path, system: str = "") -> list[list[Message]]:
    """The conversations that are to be gone on with: of a .jsonl file a line with "prompt" or "messages" each, else a
    line of text each. UserErrors with file and line."""
    talks: list[list[Message]] = []
    faults: list[UserError] = []
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    for number, line in enumerate(read_lines(source, pipe=True), 1):
        if not line.strip():
            continue
        if source.suffix.lower() != ".jsonl":
            talks.append([*first, {"role": "user", "content": line.strip()}])
            continue
        asked = _asked(line)
        if asked is None:
            hint = 'write {"prompt": "…"} or {"messages": […]} that ends with the user'
            faults.append(UserError("no prompt", file=source, line=number, hint=hint))
        else:
            own = [] if asked[0]["role"] == "system" else first
            talks.append([*own, *asked])
    if not talks and not faults:
        faults.append(UserError("holds no prompt", file=source, hint="write one a line"))
    raise_all(faults)
    return talks


def _asked(line: str) -> list[Message] | None:
    """Of one line of JSON; None where it asks nothing."""
    row = _object(line)
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        return [{"role": "user", "content": row["prompt"]}]
    messages = row.get("messages")
    sound = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") in ("system", "user", "assistant")
        for m in messages
    )
    return messages if sound and messages and messages[-1]["role"] == "user" else None


def _object(line: str) -> dict[str, Any]:
    """A line of JSON; empty where it is none, or no object."""
    try:
        row = load_json(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
