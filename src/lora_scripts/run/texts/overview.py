"""What a run on texts will do, before its first step, as a table."""

from __future__ import annotations

from pathlib import Path

import torch

from lora_scripts.check.texts.judging import FEW
from lora_scripts.config.schema import TrainConfig
from lora_scripts.run.build import memory_words
from lora_scripts.run.overview import device_name, lora_rows, odd_schedule
from lora_scripts.run.parts import TextModel
from lora_scripts.run.texts.dataset import Encoded, TextHeldOut
from lora_scripts.train.text_feed import TextFeed


def table_rows(
    config: TrainConfig,
    model: TextModel,
    encoded: Encoded,
    feed: TextFeed,
    held: TextHeldOut,
    *,
    steps: int,
    done: int,
    smaller: str,
    precision: str,
    device: torch.device,
    output: Path,
) -> list[tuple[str, str]]:
    """(what, its value) of a run of `steps` steps, of which `done` are; `output`: the LoRA's folder; `smaller`: what is
    smaller since memory ran out, "" where it did not."""
    c, counts = config, encoded.counts
    lengths = sorted(encoded.trained.lengths)
    few = len(lengths) < FEW
    batches = len(feed.batches(0))
    accumulated = f", {c.gradient_accumulation} batches a step" if c.gradient_accumulation > 1 else ""
    learned = f"{counts.trained:,} of {counts.tokens:,} tokens are learned ({c.train_on})"
    where = f"{len(held.samples)} records; measured every {held.every} steps" if held.on else "none (val_split: 0)"
    groups = model.family.facts.groups
    missing = [r.match for r in c.rules if r.match in groups and not any(map(groups[r.match], model.layers))]
    rows = [
        ("base model", f"{c.base_model} ({model.family.facts.words}, {model.family.words})"),
        (
            "records",
            f"{len(lengths)} of {c.records}: {lengths[len(lengths) // 2]} tokens (median), {lengths[-1]} at most",
        ),
        ("learned", learned),
        ("held out", where),
        ("rows", "packed: records side by side" if feed.settings.packing else "one record each, of about one length"),
        (
            "steps",
            f"{len(lengths)} records x {c.repeats} repeats / batch {c.batch_size} = {batches} batches{accumulated}, "
            f"x {c.epochs} epochs = {steps} steps" + (f", {done} done" if done else ""),
        ),
        *lora_rows(model),
        ("learning rate", f"{c.learning_rate:g}, {c.effective_lr_schedule}"),
        ("precision", f"{precision}, LoRA fp32"),
        ("device", device_name(device)),
        *([("memory", memory_words(c))] if memory_words(c) else []),
        *([("memory ran out", smaller)] if smaller else []),
        ("output", str(output)),
        *([("note", f"{len(lengths)} records are few: a hundred of one kind teach far more")] if few else []),
        *(("note", text) for text in odd_schedule(c, steps)),
        *(("note", f"its {name} layers are experts, which take no LoRA here: the rest is trained") for name in missing),
    ]
    if c.init_lora:
        rows.insert(1, ("starts from", ", ".join(filter(None, [str(c.init_lora), model.resized]))))
    return rows
