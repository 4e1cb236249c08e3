"""`lora-scripts evaluate`: a language model on records that it has not learned, without and with LoRAs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.data.texts.conversations import Completion, Conversation, Record, RecordFault
from lora_scripts.data.texts.records import Records, read_records
from lora_scripts.errors import UserError, raise_all
from lora_scripts.evaluate.scoring import Share, exact, rouge_l, share, spoken
from lora_scripts.events import Note, Progress, Sink, ignore
from lora_scripts.units import number_of

if TYPE_CHECKING:
    from lora_scripts.data.texts.conversations import Message
    from lora_scripts.families.sequences import Example
    from lora_scripts.families.texts import Answer, Answering, TextEncoder, TextFamily
    from lora_scripts.train.evidence import Interval

SHOWN = 3
"""Answers that are told."""


@dataclass(frozen=True)
class Figures:
    """How a model does on the records."""

    loss: float
    """Mean over the records of the mean over their tokens, in nats."""
    perplexity: float
    """e to the loss."""
    exact: Share
    """Answers that are the wanted ones, word for word."""
    rouge_l: float
    """Mean."""
    stopped: Share
    """Answers that ended by themselves."""


@dataclass(frozen=True)
class Compared:
    """The LoRAs' figures less the base's, over the same records, with 95 % intervals."""

    loss: Interval
    """Below 0: better."""
    exact: Interval
    rouge_l: Interval


@dataclass(frozen=True)
class Shown:
    """One record, and what was answered."""

    place: str
    asked: str
    wanted: str
    base: str
    lora: str | None


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` found."""

    records: int
    answered: int
    """Records with an answer; the others are running text, or end with a call: only their loss is taken."""
    base: Figures
    lora: Figures | None
    compared: Compared | None
    answers: tuple[Shown, ...]


@dataclass
class _Taken:
    """Of one model, record by record."""

    losses: list[float]
    answers: list[Answer]


def evaluate(
    base: Path,
    loras: Sequence[tuple[Path, float]],
    data: Path,
    *,
    count: int | None = None,
    template: str | None = None,
    max_length: int = 2048,
    max_tokens: int = 512,
    batch: int = 8,
    think: bool = True,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    sink: Sink = ignore,
) -> Evaluated:
    """Loss, exact answers and ROUGE-L of the first `count` records, of the base and of the base with the LoRAs.

    UserErrors for what is wrong with the files, at once.
    """
    from lora_scripts.loras import on_texts

    on_texts.check(base, loras)
    records = _held_out(data)
    chosen = range(len(records) if count is None else min(count, len(records)))
    from lora_scripts.families.texts import Answering

    model = on_texts.load_on(base, device, precision)
    template = on_texts.template_of(template, loras)
    encoder = model.encoder(template=template, train_on="answers", max_length=max_length, long_records="cut")
    examples, asked = _put(model, encoder, records, chosen, template)
    if cut := encoder.counts.cut:
        more = "" if encoder.max_length < max_length else "; --max-length takes more of them"
        text = f"{number_of(cut, 'record')} longer than {encoder.max_length} tokens: the loss is of what fits"
        sink(Note(f"note: {text}{more}"))
    answering = Answering(max_tokens=max_tokens, think=think)
    taken = [_take(model, examples, asked, answering, template, batch, sink, "base")]
    if loras:
        on_texts.wear(model, loras)
        taken.append(_take(model, examples, asked, answering, template, batch, sink, "LoRA"))
    wanted = [one.wanted for _, one in asked]
    figures = [_figures(one, wanted) for one in taken]
    return Evaluated(
        records=len(chosen),
        answered=len(asked),
        base=figures[0],
        lora=figures[1] if loras else None,
        compared=_compared(taken[0], taken[1], wanted, seed) if loras else None,
        answers=tuple(_shown(records, asked, taken)),
    )


def _as_option(hint: str | None) -> str | None:
    """The mend of a record's fault as options of the command: those of a run are keys of its config."""
    for key, option in ((", or set long_records: leave_out", ""), ("max_length", "--max-length")):
        hint = hint and hint.replace(key, option)
    return hint and hint.replace("chat_template", "--template")


def _held_out(data: Path) -> Records:
    """The records of the test split, else of the validation split, else all."""
    if data.is_dir():
        for split in ("test", "valid"):
            records = read_records(data, split)
            if len(records):
                return records
    return read_records(data)


@dataclass(frozen=True)
class _Asked:
    """What comes before the last answer, and that answer."""

    messages: list[Message]
    wanted: str
    tools: Sequence[Mapping[str, Any]] = ()


def _put(
    model: TextFamily, encoder: TextEncoder, records: Records, chosen: Sequence[int], template: str | None
) -> tuple[list[tuple[int, Example]], list[tuple[int, _Asked]]]:
    """What is put to every model: the sequences of the chosen records and their questions, each with its record.
    UserErrors for records of which there is no sequence, or no place for an answer."""
    examples: list[tuple[int, Example]] = []
    faults: list[UserError] = []
    for i in chosen:
        try:
            examples += [(i, example) for example in encoder.encode(records[i])]
        except RecordFault as fault:
            place = records.place(i)
            faults.append(UserError(fault.message, file=place.file, line=place.line, hint=_as_option(fault.hint)))
    asked = [(i, found) for i in chosen if (found := _question(records[i])) is not None]
    for i, one in asked:
        room = model.room(one.messages, template=template, tools=one.tools)
        if room is not None and room < 1:
            place = records.place(i)
            message = "the question is so long that the model has no place for an answer"
            faults.append(UserError(message, file=place.file, line=place.line, hint="shorten it, or leave it out"))
    raise_all(faults)
    return examples, asked


def _question(record: Record) -> _Asked | None:
    """None of running text, and where the last answer is a call of a tool: as text that is none of the record's."""
    from lora_scripts.families.texts import BEGINNING

    match record:
        case Conversation(messages, tools) if not messages[-1].get("tool_calls"):
            return _Asked(list(messages[:-1]), messages[-1]["content"], tools)
        case Completion(prompt, completion):
            return _Asked([{"role": BEGINNING, "content": prompt}], completion)
    return None


def _take(
    model: TextFamily,
    examples: Sequence[tuple[int, Example]],
    asked: Sequence[tuple[int, _Asked]],
    answering: Answering,
    template: str | None,
    batch: int,
    sink: Sink,
    name: str,
) -> _Taken:
    from lora_scripts.train.text_feed import TextProbe

    each = TextProbe(model, [example for _, example in examples], batch).losses()[:, 0].tolist()
    by_record: dict[int, list[float]] = {}
    for (i, _), loss in zip(examples, each, strict=True):
        by_record.setdefault(i, []).append(loss)
    losses = [sum(values) / len(values) for values in by_record.values()]
    answers: list[Answer] = []
    for start in range(0, len(asked), batch):
        some = [one for _, one in asked[start : start + batch]]
        talks, tools = [one.messages for one in some], [one.tools for one in some]
        answers += model.answers(talks, answering, template=template, tools=tools)
        sink(Progress(f"answers of the {name}", len(answers), len(asked)))
    return _Taken(losses, answers)


def _scores(taken: _Taken, wanted: Sequence[str]) -> tuple[list[bool], list[float]]:
    """Of each answer whether it is the wanted one, and its ROUGE-L; of both what stands behind the thought."""
    pairs = [(spoken(answer.text), spoken(want)) for answer, want in zip(taken.answers, wanted, strict=True)]
    return [exact(*pair) for pair in pairs], [rouge_l(*pair) for pair in pairs]


def _figures(taken: _Taken, wanted: Sequence[str]) -> Figures:
    loss = sum(taken.losses) / len(taken.losses) if taken.losses else math.nan
    hits, rouges = _scores(taken, wanted)
    return Figures(
        loss,
        math.exp(loss) if loss < 700 else math.inf,
        share(hits),
        sum(rouges) / len(rouges) if rouges else math.nan,
        share([answer.stopped for answer in taken.answers]),
    )


def _compared(base: _Taken, lora: _Taken, wanted: Sequence[str], seed: int) -> Compared:
    from lora_scripts.train.evidence import bootstrap, less

    (exact_a, rouge_a), (exact_b, rouge_b) = _scores(base, wanted), _scores(lora, wanted)
    return Compared(
        bootstrap(less(lora.losses, base.losses), seed),
        bootstrap(less([*map(float, exact_b)], [*map(float, exact_a)]), seed),
        bootstrap(less(rouge_b, rouge_a), seed),
    )


def _shown(records: Records, asked: Sequence[tuple[int, _Asked]], taken: Sequence[_Taken]) -> list[Shown]:
    rows = []
    for number, (i, one) in enumerate(asked[:SHOWN]):
        said = [own.answers[number].text for own in taken]
        lora = said[1] if len(said) > 1 else None
        rows.append(Shown(str(records.place(i)), one.messages[-1]["content"], one.wanted, said[0], lora))
    return rows
