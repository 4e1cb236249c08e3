"""What can be known to be wrong before torch is imported: the output folder, the records, the model's folder."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.split import FEWEST, lot, share_of
from lora_scripts.data.texts.conversations import Completion, Conversation, Record, Text
from lora_scripts.data.texts.forms import CONVERSATIONS
from lora_scripts.data.texts.records import Records, list_records
from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Note, Sink, ignore
from lora_scripts.families import table
from lora_scripts.loras import file as loras
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.units import listed
from lora_scripts.utf8 import read_lines

ADAPTERS = ("lora", "dora", "pissa")
"""What the folder of a LoRA for a language model can hold."""


@dataclass(frozen=True)
class TextSplit:
    """The records of a run: each is its data set and its number in it."""

    trained: list[tuple[Records, int]]
    held_out: list[tuple[Records, int]]
    digests: dict[str, str]
    """Of the data sets, for resuming: what they are -> digest of their content."""


@dataclass(frozen=True)
class TextReady:
    """What a run can begin with."""

    folder: RunFolder
    records: Records
    split: TextSplit


def preflight(config: TrainConfig, *, resume: bool | None, sink: Sink = ignore) -> TextReady:
    """The output folder and the records of a run; UserErrors with every fault of them and of the model's folder.

    `resume` None: whatever lies in the output folder is no fault.
    """
    folder = RunFolder(config.output_dir, config.name, suffix="")
    faults = Faults()
    attempt = faults.attempt

    def read(source: Path, split: str) -> Records:
        records, wrong = attempt(lambda: list_records(source, split)) or (Records(()), [])
        faults.extend(wrong)
        return records

    if resume is not None:
        attempt(folder.require_free)
        attempt(lambda: folder.check(resume=resume))
    attempt(lambda: table.require_texts(config.base_model).check(config.base_model, True))
    attempt(lambda: _adapter(config))
    attempt(lambda: prompts_of(config))
    records = read(config.records, "train")
    others = _others(config, records, read)
    attempt(lambda: _template(config, [records, *([others] if others is not None else [])]))
    if not len(records) and not faults:
        faults.append(UserError("there are no records to train", file=config.records))
    raise_all(faults)
    for note, mend in records.notes:
        sink(Note(f"note: {note}; {mend}"))
    measured = {part.path for part in others.parts} if others is not None else set()
    for held, what in ((True, "held out"), (False, "not trained")):
        named = [path for path in records.left_out if (path in measured) == held]
        if named:
            names = listed([path.relative_to(config.records).as_posix() for path in named], 4)
            sink(Note(f"note: {what}, by their names: {names}"))
    return TextReady(folder, records, _split(config, records, others, sink))


def _others(config: TrainConfig, records: Records, read: Callable[[Path, str], Records]) -> Records | None:
    """Records that are measured and not trained: those that the config names, else, where it says nothing of that, the
    validation split of the folder; None for none."""
    if config.held_out_records is not None:
        return read(config.held_out_records, "valid")
    if config.val_split is not None or not records.left_out:
        return None
    found = read(config.records, "valid")
    return found if len(found) else None


def prompts_of(config: TrainConfig) -> list[str]:
    """`sample_prompts`, each as it stands; a file has one a line. UserError for one that says nothing."""
    prompts = config.sample_prompts
    if not isinstance(prompts, Path):
        return list(prompts)
    found = [line.strip() for line in read_lines(prompts) if line.strip()]
    if not found:
        raise UserError("holds no prompt", file=prompts, hint="write one a line")
    return found


def _template(config: TrainConfig, records: Sequence[Records]) -> None:
    """UserError for conversations that nothing says how to write."""
    spoken = any(one.forms.get(form) for one in records for form in CONVERSATIONS)
    if not spoken or config.chat_template is not None:
        return
    try:
        facts = table.find(config.base_model)
        facts.check(config.base_model, False)
    except UserError:  # told already: the folder is no model, or lacks more than a template
        return
    if not facts.has_template(config.base_model):
        hint = "name one with chat_template: chatml, alpaca, or a .jinja file"
        raise UserError("the model's tokenizer has no chat template", file=config.base_model, hint=hint)


def _adapter(config: TrainConfig) -> None:
    if config.adapter not in ADAPTERS:
        hint = f"take adapter: {' or '.join(ADAPTERS)}"
        raise UserError(f"adapter: {config.adapter} has no form in the folder of a language model's LoRA", hint=hint)
    if config.init_lora is not None:
        facts, own = table.find(config.base_model), loras.family_of(config.init_lora)
        if own is not facts:
            raise UserError(f"init_lora is for {own.words}", file=config.init_lora, hint=f"give one for {facts.words}")


def _split(config: TrainConfig, records: Records, others: Records | None, sink: Sink) -> TextSplit:
    """Holds some of the records out, or takes the others; never one that is trained, too.

    Which ones is a function of the seed and of what they say. UserError where `patience` has nothing to go by.
    """
    digests = [digest_of(record) for record in records]
    data = {"records": records.fingerprint}
    if others is not None:
        data["held-out records"] = others.fingerprint
        trained = set(digests)
        apart = [i for i, record in enumerate(others) if digest_of(record) not in trained]
        if len(apart) < len(others):
            if not apart:
                message = "each of its records is trained, too, so nothing could be measured"
                raise UserError(message, file=others.parts[0].path, hint="take others, or write val_split: 0.1")
            sink(Note(f"note: {len(others) - len(apart)} held-out records are trained, too, and left out"))
        split = TextSplit([(records, i) for i in range(len(records))], [(others, i) for i in apart], data)
    else:
        times = Counter(digests)
        alone = [i for i, digest in enumerate(digests) if times[digest] == 1 and not _part_of_text(records, i)]
        order = sorted(alone, key=lambda i: lot(config.seed, digests[i]))
        held = set(order[: share_of(len(records), config.val_split)])
        split = TextSplit(
            [(records, i) for i in range(len(records)) if i not in held],
            [(records, i) for i in sorted(held)],
            data,
        )
    if config.patience is not None and not split.held_out:
        hint = "add val_split: 0.2, or val_file, or leave patience out"
        raise UserError(f"patience: no record is held out (of fewer than {FEWEST} none is by itself)", hint=hint)
    return split


def _part_of_text(records: Records, i: int) -> bool:
    """A piece of a long document: its neighbours would tell of it."""
    record = records[i]
    return isinstance(record, Text) and not (record.begins and record.ends)


def digest_of(record: Record) -> str:
    """SHA-256 of what a record says, in whichever form."""
    match record:
        case Conversation(messages, tools):
            said: object = [messages, tools]
        case Completion(prompt, completion):
            said = [prompt, completion]
        case Text(text):
            said = text
    whole = json.dumps(said, sort_keys=True, ensure_ascii=False, default=str)  # a table may hold dates
    return hashlib.sha256(whole.encode()).hexdigest()
