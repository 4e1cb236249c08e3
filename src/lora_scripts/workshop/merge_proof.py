"""What a merged language model says, against what the base says with the LoRAs on it: the proof of a merge.

What the base says is asked before anything is written: then a mistake in the records costs no merge.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.data.texts.conversations import RecordFault
from lora_scripts.data.texts.records import Records
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Sink
from lora_scripts.units import percent

if TYPE_CHECKING:
    import torch

    from lora_scripts.families.sequences import Example
    from lora_scripts.families.texts import TextFamily

MOST = 0.2
"""Of the change that the LoRAs make to what is said, how much a merge may be off by."""
RECORDS, TOKENS = 16, 512
"""That are looked at, and tokens of each."""


@dataclass(frozen=True)
class MergeProof:
    """Of the logits of some records: merged, against the base with the LoRAs beside it."""

    records: int
    tokens: int
    largest: float
    """Difference of a logit."""
    share: float
    """|merged - LoRAs| / |LoRAs - base|, over all logits: how much of the change is lost, or is another."""
    changed_answers: int
    """Places where another token has become the likeliest."""


@dataclass(frozen=True)
class Meant:
    """What the base says with the LoRAs on it."""

    rows: Sequence[Example]
    logits: Sequence[torch.Tensor]
    """Of each row, [tokens, vocabulary]."""
    change: float
    """|LoRAs - base|, over all logits."""


def meant(base: Path, loras: Sequence[tuple[Path, float]], records: Records | None, sink: Sink) -> Meant:
    """Asks the base on some of the records, or else on drawn tokens. UserError, with file and line, for a record of
    which nothing can be made."""
    from lora_scripts.loras import on_texts

    model = _load(base)
    rows = _examples(model, records)
    sink(Note(f"proving the merge on {len(rows)} {'rows of drawn tokens' if records is None else 'records'}"))
    plain = [_logits(model, row) for row in rows]
    on_texts.wear(model, loras)
    worn = [_logits(model, row) for row in rows]
    change = sum(float((a - b).square().sum()) for a, b in zip(worn, plain, strict=True)) ** 0.5
    return Meant(rows, worn, change)


def prove(meant: Meant, merged: Path) -> MergeProof:
    """Asks the merged model the same. UserError, and the model is removed, where it is not what the LoRAs were."""
    model = _load(merged)
    largest = squares = 0.0
    changed = 0
    for row, worn in zip(meant.rows, meant.logits, strict=True):
        ours = _logits(model, row)
        largest = max(largest, float((ours - worn).abs().max()))
        squares += float((ours - worn).square().sum())
        changed += int((ours.argmax(-1) != worn.argmax(-1)).sum())
    proof = MergeProof(
        records=len(meant.rows),
        tokens=sum(len(row.ids) for row in meant.rows),
        largest=largest,
        share=squares**0.5 / meant.change if meant.change else 0.0,
        changed_answers=changed,
    )
    if proof.share > MOST:
        shutil.rmtree(merged)
        far = f"it is off by {percent(proof.share)} of the change"
        text = f"the merged model is not what the LoRAs made of the base: {far}"
        raise UserError(f"{text} (largest difference of a logit {proof.largest:.2g})", hint="use --precision fp32")
    return proof


def _load(path: Path) -> TextFamily:
    import torch

    from lora_scripts.families.base import LoadOptions
    from lora_scripts.loras import on_texts

    return on_texts.load(path, LoadOptions(torch.device("cpu"), torch.float32))


def _examples(model: TextFamily, records: Records | None) -> list[Example]:
    import torch

    from lora_scripts.families.sequences import Example

    if records is None:
        draw = torch.Generator().manual_seed(0)
        rows = torch.randint(model.vocabulary, (4, 64), generator=draw).tolist()
        return [Example(row, [True] * len(row)) for row in rows]
    encoder = model.encoder(train_on="answers", max_length=TOKENS, long_records="cut")
    examples: list[Example] = []
    for i in range(min(RECORDS, len(records))):
        try:
            examples += encoder.encode(records[i])
        except RecordFault as fault:
            place = records.place(i)
            raise UserError(fault.message, file=place.file, line=place.line, hint=fault.hint) from None
    return examples


def _logits(model: TextFamily, row: Example) -> torch.Tensor:
    from lora_scripts.families.sequences import padded

    return model.logits(padded([row]))[0]
