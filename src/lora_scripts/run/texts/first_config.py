"""`lora-scripts new` for a language model: a config for one's own records and base, every line with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.config.commented import commented, remark
from lora_scripts.config.load import scalar
from lora_scripts.data.texts.conversations import RecordFault
from lora_scripts.data.texts.forms import CONVERSATIONS
from lora_scripts.data.texts.records import Records, read_records
from lora_scripts.errors import UserError
from lora_scripts.families import table
from lora_scripts.families.facts import Facts, Setting

if TYPE_CHECKING:
    from lora_scripts.families.texts import TextEncoder

SEEN, FEWEST, MOST = 600, 2, 6
"""How many records are learned from in all, about, and in how many epochs at least and at most."""
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
"""Tokens of a record, of which the least is taken that nearly all records fit into."""
NEARLY = 0.98
SHARE = 50
"""Records below which none is held out by a key: the run's own default is right for few."""


def rows_of(data: Path, base: Path) -> tuple[Records, int, list[Setting]]:
    """The records, the number of steps, and the keys of a run on them. UserErrors for what `train` would refuse."""
    facts = table.require_texts(base)
    facts.check(base, False)
    records = read_records(data)
    if not len(records):
        raise UserError("there are no records to train", file=data)
    template = _template(facts, base, records)
    assert facts.text_encoder is not None
    encoder = facts.text_encoder(base, template, "answers", 1 << 40)
    lengths = _lengths(encoder, records)
    fitting = lengths[min(len(lengths) - 1, int(NEARLY * len(lengths)))]
    longest = next((length for length in LENGTHS if length >= fitting), LENGTHS[-1])
    longest = min(longest, encoder.places or longest)
    cut = sum(length > longest for length in lengths)
    epochs = min(MOST, max(FEWEST, round(SEEN / len(records))))
    gathered = 2 if len(records) >= 200 else 1
    steps = -(-len(records) // (4 * gathered)) * epochs
    told = f"{cut} of {len(records)} are longer and lose their end" if cut else f"the longest has {lengths[-1]} tokens"
    rows = [
        Setting("lora_rank", "16", "8 to 16 for a form or a tone, 32 and more for new knowledge"),
        Setting("lora_alpha", "32", "twice the rank is usual"),
        Setting("epochs", str(epochs), f"{len(records)} records, each seen {epochs} times: about {steps} steps"),
        Setting("batch_size", "4", "records in a step, packed side by side where that is safe"),
        *([Setting("gradient_accumulation", "2", "two batches make a step")] if gathered > 1 else []),
        Setting("learning_rate", "2e-4", "1e-4 to 4e-4; lower if the loss rises"),
        Setting("warmup_steps", str(max(1, steps // 20)), "a twentieth of the steps"),
        Setting("max_length", str(max(16, longest)), f"tokens of a record; {told}"),
        *([Setting("chat_template", template, "the model has none of its own")] if template else []),
        Setting("save_steps", str(max(10, -(-steps // 50) * 10)), "about five files on the way"),
        *([Setting("val_split", "0.05", "held out, to tell when to stop")] if _splits(records) else []),
    ]
    return records, steps, rows


def text_of(name: str, data: Path, base: Path) -> tuple[str, Records, int]:
    """The config, its records, and the number of steps. UserErrors as `rows_of`."""
    records, steps, rows = rows_of(data, base)
    forms = ", ".join(f"{count} {form}" for form, count in records.forms.items())
    paths = [
        Setting("train_data_dir" if data.is_dir() else "train_file", scalar(data), f"{len(records)} records ({forms})"),
        Setting("base_model", scalar(base), table.require_texts(base).checkpoint.words),
        Setting("output_dir", scalar(f"output/{name}"), f"the LoRA is output/{name}/{name}, as PEFT loads it"),
    ]
    what = "What a language model learns"
    lines = [remark(f"{what}. Train it: lora-scripts train --config …; every key stands in docs/keys.md.")]
    for group in (paths, rows):
        lines += ["", *(commented(*row) for row in group)]
    return "\n".join(lines) + "\n", records, steps


def _splits(records: Records) -> bool:
    """Whether some are to be held out by a key: of few the run's own default holds enough, and a folder may have a
    split for it."""
    return len(records) >= SHARE and not records.left_out


def _template(facts: Facts, base: Path, records: Records) -> str | None:
    """The name of a chat template, where the model has none and the records are conversations."""
    spoken = any(records.forms.get(form) for form in CONVERSATIONS)
    return None if not spoken or facts.has_template is None or facts.has_template(base) else "alpaca"


def _lengths(encoder: TextEncoder, records: Records) -> list[int]:
    """Tokens of each record, the least first. UserError with the place of one that cannot be trained."""
    lengths: list[int] = []
    for i, record in enumerate(records):
        try:
            lengths.append(max(len(example.ids) for example in encoder.encode(record)))
        except RecordFault as fault:
            place = records.place(i)
            raise UserError(fault.message, file=place.file, line=place.line, hint=fault.hint) from None
    return sorted(lengths)
