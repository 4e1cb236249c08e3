"""`lora-scripts chat --from-file`: every prompt of a file answered, each in a conversation of its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.chat.session import BARE, NAME_ONE
from lora_scripts.chat.talks import Talk, read_talks
from lora_scripts.chat.thoughts import without
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Progress, Saved, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.utf8 import load_json, read_lines

if TYPE_CHECKING:
    from lora_scripts.families.texts import Answering, TextFamily

Row = dict[str, Any]
"""A line of the file: prompt, answer, whether it ended by itself, and `by`, a mark of what answered which
conversation."""
AT_ONCE = 8
"""Prompts that are answered together."""
_SAMPLES, _SAMPLE = 64, 4096
"""Places of a file that its mark is made of, and bytes at each."""
_LOADED = (".safetensors", ".json", ".jinja", ".model")
"""What of a folder makes a model or a LoRA."""


@dataclass(frozen=True)
class Answered:
    """What a file of prompts has become."""

    output: Path
    """JSON lines: prompt, answer, whether it ended by itself, and the mark of what answered it."""
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
    on_texts.check(base, loras)
    template = on_texts.template_of(template, loras)
    where, exact = on_texts.place(device, precision)
    mark = mark_of(base, loras, template, answering, where.type, exact)
    by = [_digest([mark, talk.messages, talk.tools]) for talk in talks]
    rows = read_answers(output, talks, by) if output.exists() else []
    if len(rows) == len(talks):
        return Answered(output, len(talks), _ended(rows))
    model = on_texts.load_on(base, str(where), exact)
    on_texts.wear(model, loras)
    bare = model.template_text(template) is None
    if bare and system:
        raise UserError(f"--system does nothing: {BARE}", hint=NAME_ONE)
    raise_all(_unanswerable(model, talks, template, source, bare=bare))
    for start in range(len(rows), len(talks), AT_ONCE):
        some = talks[start : start + AT_ONCE]
        answers = model.answers(
            [talk.messages for talk in some],
            replace(answering, seed=answering.seed + start),  # else one prompt, asked often, had eight answers in all
            template=template,
            tools=[talk.tools for talk in some],
        )
        for talk, answer in zip(some, answers, strict=True):
            said = without(answer.text)
            rows.append({"prompt": talk.prompt, "answer": said, "stopped": answer.stopped, "by": by[len(rows)]})
        io.write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        sink(Progress("prompts", len(rows), len(talks)))
    sink(Saved("answers", output))
    return Answered(output, len(talks), _ended(rows))


def _unanswerable(
    model: TextFamily, talks: Sequence[Talk], template: str | None, source: Path, *, bare: bool
) -> Iterator[UserError]:
    """Why prompts cannot be answered, each with its line; `bare`: the model has no chat template."""
    for talk in talks:
        try:
            room = model.room(talk.messages, template=template, tools=talk.tools)
        except UserError as fault:
            yield UserError(fault.message, file=source, line=talk.line, hint=fault.hint)
            continue
        if bare and (len(talk.messages) > 1 or talk.tools):
            what = "history that is" if len(talk.messages) > 1 else "tools that are"
            yield UserError(f"{what} not seen: {BARE}", file=source, line=talk.line, hint=NAME_ONE)
        elif room is not None and room < 1:
            message = "the prompt is so long that the model has no place for an answer"
            yield UserError(message, file=source, line=talk.line, hint="shorten it, or leave it out")


# --- answers that are there -------------------------------------------------------------------------------------------


def read_answers(output: Path, talks: Sequence[Talk], by: Sequence[str]) -> list[Row]:
    """What a command that was stopped had written of these conversations; `by`: the mark that each answer must have.
    UserError where it is of others, or where something else has answered them."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(output), 1):
        if not line.strip():
            continue
        row = _answer(line)
        if row is None:
            text = "no answer as chat writes it"
        elif len(rows) == len(talks) or row["prompt"] != talks[len(rows)].prompt:
            text = "answers no prompt of the file"
        elif row["by"] != by[len(rows)]:
            text = "was answered by another base or LoRA, or with another system prompt, template or setting"
        else:
            rows.append(row)
            continue
        raise UserError(text, file=output, line=number, hint="give --output another name, or remove it")
    return rows


def _answer(line: str) -> Row | None:
    try:
        row = load_json(line)
    except ValueError:
        return None
    kinds = {"prompt": str, "answer": str, "stopped": bool, "by": str}
    sound = isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in kinds.items())
    return row if sound else None


def _ended(rows: Sequence[Row]) -> int:
    """How many answers ended by themselves."""
    return sum(row["stopped"] for row in rows)


def mark_of(
    base: Path,
    loras: Sequence[tuple[Path, float]],
    template: str | None,
    answering: Answering,
    device: str,
    precision: str,
) -> str:
    """Another one for another base or LoRA, whatever they are called, another template, or settings that change
    answers: each kind of device has random numbers of its own."""
    drawn = ("temperature", "top_p", "seed", "device") if answering.temperature == 0 else ()
    told = asdict(answering) | {"device": device, "precision": precision}
    settings = {key: value for key, value in told.items() if key not in drawn}
    own = template and (_look(Path(template)) if Path(template).is_file() else template)
    return _digest([_look(base), [[_look(path), strength] for path, strength in loras], own, settings])


def _look(path: Path) -> list[list[str]]:
    """Name and digest of the files of a model or a LoRA; of large ones places all over them are looked at."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _LOADED)
    looks = []
    for file in files:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            for number in range(_SAMPLES):
                opened.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE))
        looks.append([file.name, digest.hexdigest()])
    return looks


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
