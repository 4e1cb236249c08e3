"""The table before the first step: what will happen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.config.schema import TrainConfig
from lora_scripts.run import heldout
from lora_scripts.run.build import memory_words
from lora_scripts.run.parts import HeldOut, Model
from lora_scripts.run.pivotal import tell_new_words
from lora_scripts.train.feed import Feed


def table_rows(
    config: TrainConfig, model: Model, feed: Feed, held: HeldOut, *, steps: int, done: int, precision: str, output: Path
) -> list[tuple[str, str]]:
    """(what, its value) of a run of `steps` steps, of which `done` are; `output`: the LoRA's file."""
    c, rank, alpha = config, model.rank, model.alpha
    samples = [p.sample for p in feed.pictures if not p.of_class]
    buckets = Counter(p.bucket for p in feed.pictures)
    sizes = ", ".join(f"{w}x{h}: {n}" for (w, h), n in sorted(buckets.items(), key=lambda b: -b[1])[:6])
    batches, views = len(feed.batches(0)), len(feed.pictures[0].views)
    count = sum(p.numel() for p in model.trained)
    accumulated = f", {c.gradient_accumulation} batches a step" if c.gradient_accumulation > 1 else ""
    rows = [
        ("base model", f"{c.base_model} ({model.family.facts.words})"),
        ("images", f"{len(feed.pictures)}" + (f", {views} views each" if views > 1 else "")),
        heldout.row(held, c, len(samples), steps),
        ("buckets", sizes + (f", … {len(buckets)} in all" if len(buckets) > 6 else "")),
        (
            "steps",
            f"{len(feed.pictures)} images x {c.repeats} repeats / batch {c.batch_size} = {batches} batches"
            f"{accumulated}, x {c.epochs} epochs = {steps} steps" + (f", {done} done" if done else ""),
        ),
        ("LoRA", f"{len(model.layers)} layers, rank {rank}, alpha {alpha:g}, {count / 1e6:.2f} M parameters"),
        ("learning rate", f"{c.learning_rate:g}, {c.lr_schedule}"),
        ("precision", f"{precision}, LoRA fp32"),
        ("device", device_name(model.family.device)),
        *([("memory", memory_words(c))] if memory_words(c) else []),
        *plain_way(model, c),
        ("output", str(output)),
    ]
    if c.new_token:
        rows.insert(-4, ("new words", tell_new_words(c, samples)))
    if not 0.25 <= alpha / rank <= 2:
        rows.append(("note", f"alpha / rank is {alpha / rank:g}; usual is 0.25 to 2"))
    if c.init_lora:
        own_rank = f"its rank {rank} in place of lora_rank" if rank != c.lora_rank else ""
        rows.insert(1, ("starts from", ", ".join(filter(None, [str(c.init_lora), model.resized or own_rank]))))
    return rows


def plain_way(model: Model, config: TrainConfig) -> list[tuple[str, str]]:
    """A row where layers are not computed the quick way."""
    plain = [one for one in model.layers.values() if not isinstance(one, LoraLayer) or one.dropout]
    if not plain:
        return []
    why = "lora_dropout" if config.lora_dropout else f"adapter: {config.adapter}"
    return [("speed", f"{len(plain)} of {len(model.layers)} layers are computed the plain, slower way ({why})")]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
