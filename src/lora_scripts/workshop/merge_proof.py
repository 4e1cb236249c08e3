"""What a merged language model says, against what the base says with the LoRAs on it: the proof of a merge."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.data.conversations import RecordFault
from lora_scripts.data.records import read_records
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Sink
from lora_scripts.units import percent

if TYPE_CHECKING:
    import torch

    from lora_scripts.families.texts import Example, TextFamily

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


def prove(base: Path, loras: Sequence[tuple[Path, float]], merged: Path, data: Path | None, sink: Sink) -> MergeProof:
    """Compares on records of `data`, or else on drawn tokens. UserError, and the merged model is removed, where it is
    not what the LoRAs were."""
    import torch

    from lora_scripts.families.base import LoadOptions
    from lora_scripts.loras import on_texts

    options = LoadOptions(torch.device("cpu"), torch.float32)
    model = on_texts.load(base, options)
    rows = _examples(model, data)
    sink(Note(f"proving the merge on {len(rows)} {'records' if data else 'rows of drawn tokens'}"))
    plain = [_logits(model, row) for row in rows]
    on_texts.wear(model, loras)
    worn = [_logits(model, row) for row in rows]
    del model
    other = on_texts.load(merged, options)
    ours = [_logits(other, row) for row in rows]
    change = sum(float((a - b).square().sum()) for a, b in zip(worn, plain, strict=True)) ** 0.5
    off = sum(float((a - b).square().sum()) for a, b in zip(ours, worn, strict=True)) ** 0.5
    pairs = list(zip(ours, worn, strict=True))
    proof = MergeProof(
        records=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        largest=max(float((a - b).abs().max()) for a, b in pairs),
        share=off / change if change else 0.0,
        changed_answers=sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in pairs),
    )
    if proof.share > MOST:
        shutil.rmtree(merged)
        far = f"it is off by {percent(proof.share)} of the change"
        text = f"the merged model is not what the LoRAs made of the base: {far}"
        raise UserError(f"{text} (largest difference of a logit {proof.largest:.2g})", hint="use --precision fp32")
    return proof


def _examples(model: TextFamily, data: Path | None) -> list[Example]:
    import torch

    from lora_scripts.families.texts import Example

    if data is None:
        draw = torch.Generator().manual_seed(0)
        rows = torch.randint(model.vocabulary, (4, 64), generator=draw).tolist()
        return [Example(row, [True] * len(row)) for row in rows]
    encoder = model.encoder(train_on="answers", max_length=TOKENS, long_records="cut")
    records, rows = read_records(data), []
    for i in range(min(RECORDS, len(records))):
        try:
            rows += encoder.encode(records[i])
        except RecordFault as fault:
            place = records.place(i)
            raise UserError(fault.message, file=place.file, line=place.line, hint=fault.hint) from None
    return rows


def _logits(model: TextFamily, row: Example) -> torch.Tensor:
    from lora_scripts.families.texts import padded

    return model.logits(padded([row]))[0]
