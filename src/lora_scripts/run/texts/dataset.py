"""The records of a run as tokens, and the batches and measurements that are made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.chinese.terminal import AsItIs
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.texts.conversations import RecordFault
from lora_scripts.data.texts.records import Records
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Note, Progress, Sink
from lora_scripts.families.sequences import Examples, marked
from lora_scripts.families.texts import Counts, TextEncoder, TextFamily
from lora_scripts.run.heldout import TIMES
from lora_scripts.run.parts import Trained
from lora_scripts.run.texts.preflight import TextSplit
from lora_scripts.train.advise import Advice
from lora_scripts.train.average import Ema
from lora_scripts.train.text_feed import TextFeed, TextProbe, TextSettings

MOST_FAULTS = 20
"""Records that cannot be trained, told one by one; further ones are counted."""
ALIKE = 4
"""Records with the same fault that are told one by one."""
INSIDE = 12
"""Trained records that are measured beside the held-out ones, to tell learning from memorising."""


@dataclass(frozen=True)
class TextHeldOut:
    """What is measured of a run on texts."""

    samples: list[str]
    """Places of the held-out records."""
    inside_samples: list[str]
    outside: TextProbe
    inside: TextProbe
    every: int

    @property
    def on(self) -> bool:
        return self.every > 0

    @property
    def of_tokens(self) -> bool:
        return True

    def about(self) -> dict[str, object]:
        return {"records": self.samples, "training_records": self.inside_samples}

    def strays(self, model: Trained, ema: Ema | None, step: int) -> list[Advice]:
        return []


@dataclass(frozen=True)
class Encoded:
    """The tokens of all records."""

    trained: Examples
    held_out: Examples
    counts: Counts
    """Of the trained ones."""
    length: int
    """Tokens that one may have: max_length, or what the model has places for."""


def encode(family: TextFamily, config: TrainConfig, split: TextSplit, sink: Sink) -> Encoded:
    """Turns the records into tokens. UserErrors, with file and line, for those of which nothing could be trained."""
    faults: list[UserError] = []
    total, done = len(split.trained) + len(split.held_out), 0

    def turned(encoder: TextEncoder, rows: Sequence[tuple[Records, int]]) -> Examples:
        nonlocal done
        out = Examples()
        for records, i in rows:
            try:
                for example in encoder.encode(records[i]):
                    out.add(example, str(records.place(i)))
            except RecordFault as fault:
                place = records.place(i)
                faults.append(UserError(fault.message, file=place.file, line=place.line, hint=fault.hint))
            done += 1
            if done % 100 == 0 or done == total:
                sink(Progress("records", done, total))
        return out

    def encoder() -> TextEncoder:
        return family.encoder(
            template=config.chat_template,
            train_on=config.train_on,
            max_length=config.max_length,
            long_records=config.long_records,
        )

    own = encoder()
    encoded = Encoded(turned(own, split.trained), turned(encoder(), split.held_out), own.counts, own.max_length)
    faults = _gathered(faults)
    if len(faults) > MOST_FAULTS:
        more = len(faults) - MOST_FAULTS
        faults[MOST_FAULTS:] = [UserError(f"{more} further records cannot be trained", file=config.records)]
    raise_all(faults)
    if not len(encoded.trained):
        hint = "raise max_length, or set long_records: cut"
        raise UserError("no record is left to train: all are too long", file=config.records, hint=hint)
    return encoded


def _gathered(faults: Sequence[UserError]) -> list[UserError]:
    """Those that say the same of more records than a person wants to read become one, at the first of them."""
    alike = Counter((fault.message, fault.hint) for fault in faults)
    out: dict[object, UserError] = {}
    for fault in faults:
        count = alike[fault.message, fault.hint]
        if count <= ALIKE:
            out[id(fault)] = fault
        else:
            text = f"{fault.message} (so it is of {count - 1} further records)"
            out.setdefault(
                (fault.message, fault.hint), UserError(text, file=fault.file, line=fault.line, hint=fault.hint)
            )
    return list(out.values())


def build_feed(family: TextFamily, config: TrainConfig, encoded: Encoded) -> TextFeed:
    """Batches; packed where the config wants it and a test on the model finds that nothing leaks."""
    packing = config.packing == "auto" and family.packs
    settings = TextSettings(
        config.batch_size, config.gradient_accumulation, config.repeats, config.seed, encoded.length, packing
    )
    return TextFeed(encoded.trained, encoded.trained.places, settings)


def build_held_out(family: TextFamily, config: TrainConfig, encoded: Encoded, total: int) -> TextHeldOut:
    """What is measured of a run of `total` steps."""
    measures = config.val_split != 0 or config.held_out_records is not None
    at_a_time = 4 * config.batch_size
    step = max(1, len(encoded.trained) // INSIDE)
    some = list(range(0, len(encoded.trained), step))[:INSIDE]
    return TextHeldOut(
        samples=list(encoded.held_out.places),
        inside_samples=[encoded.trained.places[i] for i in some],
        outside=TextProbe(family, encoded.held_out, at_a_time),
        inside=TextProbe(family, [encoded.trained[i] for i in some], at_a_time),
        every=(config.val_every or -(-total // TIMES)) if measures else 0,
    )


def tell(family: TextFamily, config: TrainConfig, encoded: Encoded, feed: TextFeed, sink: Sink) -> None:
    """What happened to the records, and one of them with its trained tokens marked."""
    counts, notes = encoded.counts, list[str]()
    if encoded.length < config.max_length:
        notes.append(f"the model takes {encoded.length} tokens at once, so max_length is {encoded.length}")
    if counts.cut:
        notes.append(f"{counts.cut} records are longer than {encoded.length} tokens: their end is cut off")
    if counts.left_out:
        notes.append(f"{counts.left_out} records are longer than {encoded.length} tokens, and left out")
    if counts.split:
        notes.append(
            f"{counts.split} conversations come in parts, one for each answer: the chat template writes earlier "
            "answers otherwise than the model did"
        )
    if counts.thoughtless:
        notes.append(
            f"of {counts.thoughtless} conversations the chat template leaves the thoughts out (reasoning_content): "
            "they are not learned"
        )
    if counts.ended:
        notes.append(
            f"to {counts.ended} answers the end of a text is added, because the template ends them with no sign at "
            "which the model stops"
        )
    if config.packing == "auto" and not feed.settings.packing:
        notes.append(
            "records are not packed: a test found that this model mixes those of one row; batches go by length"
        )
    for note in notes:
        sink(Note(f"note: {note}"))
    sink(Note(f"what is learned stands between ⟦ and ⟧, as in {encoded.trained.places[0]}:"))
    sink(Note(AsItIs(marked(encoded.trained[0], family.decode))))
