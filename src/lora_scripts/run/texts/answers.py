"""The same questions answered again and again: before, while and after a model learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.texts.conversations import Completion, Conversation, Message, Record
from lora_scripts.errors import UserError
from lora_scripts.families.texts import BEGINNING, Answer, Answering, TextFamily
from lora_scripts.formats import io
from lora_scripts.run.parts import TextModel
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.run.texts.preflight import TextSplit, prompts_of
from lora_scripts.train.average import Ema, averaged

SHOWN = 3
"""Questions of the data set, where the config names none."""


@dataclass(frozen=True)
class Question:
    """One question, and what the data set answers, where it is from there."""

    messages: tuple[Message, ...]
    wanted: str | None = None

    @property
    def asked(self) -> str:
        """What was said last."""
        text: str = self.messages[-1]["content"]
        return text


def questions(config: TrainConfig, split: TextSplit, family: TextFamily) -> list[Question]:
    """`sample_prompts`, or else questions of held-out records, or of trained ones where there are none.

    UserError for a prompt so long that the model has no place for an answer; such records are passed over.
    """

    def has_room(question: Question) -> bool:
        room = family.room(question.messages, template=config.chat_template)
        return room is None or room > 0

    if config.sample_prompts:
        asked = [Question(({"role": "user", "content": text},)) for text in prompts_of(config)]
        if long := [one.asked for one in asked if not has_room(one)]:
            text = f'sample_prompts: "{long[0][:40]} …" leaves the model no place for an answer'
            raise UserError(text, hint="write a shorter one")
        return asked
    found: list[Question] = []
    for records, i in [*split.held_out, *split.trained]:
        question = _question(records[i])
        if question is not None and has_room(question):
            found.append(question)
        if len(found) == SHOWN:
            break
    return found


def _question(record: Record) -> Question | None:
    match record:
        case Conversation(messages, tools) if not tools:
            return Question(messages[:-1], messages[-1]["content"])
        case Completion(prompt, completion):
            return Question(({"role": BEGINNING, "content": prompt},), completion)
    return None


def answered(family: TextFamily, config: TrainConfig, asked: Sequence[Question]) -> list[Answer]:
    """The likeliest answers of the model as it stands."""
    answering = Answering(max_tokens=config.answer_tokens)
    return [family.answer(one.messages, answering, template=config.chat_template) for one in asked]


def answered_now(model: TextModel, ema: Ema | None, config: TrainConfig, asked: Sequence[Question]) -> list[Answer]:
    """Of what a file would hold now."""
    model.train(False)
    with averaged(model.trained, model.optimizer, ema):
        answers = answered(model.family, config, asked)
    model.train(True)
    return answers


def save(path: Path, question: Question, answer: Answer) -> None:
    """One answer as a text file."""
    io.make_folder(path.parent)
    ended = "" if answer.stopped else "\n(cut off)"
    wanted = "" if question.wanted is None else f"\n\nin the data set:\n{question.wanted}"
    io.write_text(path, f"asked:\n{question.asked}\n\nanswered:\n{answer.text}{ended}{wanted}\n")


def earlier(folder: RunFolder, number: int, last: int) -> list[tuple[int, str]]:
    """(step, answer) of those that were saved to a question on the way to the last step."""
    rows = []
    for step in folder.sampled(".txt"):
        path = folder.sample(step, number, ".txt")
        if step < last and path.is_file():
            text = path.read_text("utf-8").partition("\nanswered:\n")[2]
            rows.append((step, text.partition("\n\nin the data set:\n")[0].strip()))
    return rows
