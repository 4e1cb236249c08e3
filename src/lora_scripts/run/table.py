"""The table before the first step: what will happen."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from lora_scripts.run import memory
from lora_scripts.run.new_words import tell_new_words

if TYPE_CHECKING:
    from lora_scripts.run.story import Run


def plan_rows(run: Run) -> list[tuple[str, str]]:
    """What will happen, as the table before the first step says it."""
    c, feed, rank, alpha = run.config, run.feed, run.model.rank, run.model.alpha
    buckets = Counter(p.bucket for p in feed.pictures)
    told = ", ".join(f"{w}x{h}: {n}" for (w, h), n in sorted(buckets.items(), key=lambda b: -b[1])[:6])
    batches = len(feed.batches(0))
    count = sum(p.numel() for g in run.optimizer.param_groups for p in g["params"])
    accumulated = f", {c.gradient_accumulation} batches a step" if c.gradient_accumulation > 1 else ""
    views = len(feed.pictures[0].views)
    rows = [
        ("base model", f"{c.base_model} ({run.family.facts.words})"),
        ("images", f"{len(feed.pictures)}" + (f", {views} views each" if views > 1 else "")),
        run.held.row(),
        ("buckets", told + (f", … {len(buckets)} in all" if len(buckets) > 6 else "")),
        (
            "steps",
            f"{len(feed.pictures)} images x {c.repeats} repeats / batch {c.batch_size} = {batches} batches"
            f"{accumulated}, x {c.epochs} epochs = {run.total} steps"
            + (f", {run.state.step} done" if run.state.step else ""),
        ),
        (
            "LoRA",
            f"{len(run.layers)} layers, rank {rank}, alpha {alpha:g}, {count / 1e6:.2f} M parameters",
        ),
        ("learning rate", f"{c.learning_rate:g}, {c.lr_schedule}"),
        ("precision", f"{run.precision}, LoRA fp32"),
        ("device", _device_name(run.device)),
        *([("memory", memory.told(c))] if memory.told(c) else []),
        ("output", str(run.folder.final)),
    ]
    if c.new_token:
        rows.insert(-4, ("new words", tell_new_words(c, run.samples)))
    if not 0.25 <= alpha / rank <= 2:
        rows.append(("note", f"alpha / rank is {alpha / rank:g}; usual is 0.25 to 2"))
    if c.init_lora:
        kept = f"its rank {rank} in place of lora_rank" if rank != c.lora_rank else ""
        rows.insert(1, ("starts from", ", ".join(filter(None, [str(c.init_lora), run.model.resized or kept]))))
    return rows


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
