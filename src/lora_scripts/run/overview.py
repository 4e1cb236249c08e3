"""What a run will do, before its first step: how much besides training, and the table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lora_scripts.adapters.layer import Adapter, LoraLayer
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.loader import folders_in_words, numbered
from lora_scripts.data.scan import Sample
from lora_scripts.families.base import Sampling
from lora_scripts.run import heldout
from lora_scripts.run.after.finish import drawn_in_all
from lora_scripts.run.build import encoding, memory_words
from lora_scripts.run.dataset import preserving_row
from lora_scripts.run.heldout import FEW_LEVELS, LEVELS, at_levels
from lora_scripts.run.parts import HeldOut, Model, Trained
from lora_scripts.run.pivotal import tell_new_words
from lora_scripts.run.previews import previews_of, usual
from lora_scripts.train.advise import SHORT, USUAL
from lora_scripts.train.feed import Feed
from lora_scripts.units import number_of, percent, span

USUAL_RATES = {"adamw": 2e-4, "adamw8bit": 2e-4, "adafactor": 2e-4, "lion": 5e-5, "schedule_free": 1e-3}
"""Learning rates to begin with; prodigy finds its own."""
MOST_RATE = 10
"""How many times that is told as high. (The bundled miniature bears twenty; its file says so.)"""
FEW = 10
"""Pictures that are told as few."""
FAR = 0.45
"""Of the base's pixels, or its inverse: beyond, a base draws badly."""

HELD, PREVIEWS, REPORT = "held-out loss", "previews", "report"
"""What takes time besides training."""
BESIDES, PRECISION = "besides training", "precision"
"""Rows that forecast."""


def table_rows(
    config: TrainConfig, model: Model, feed: Feed, held: HeldOut, *, steps: int, done: int, precision: str, output: Path
) -> list[tuple[str, str]]:
    """(what, its value) of a run of `steps` steps, of which `done` are; `output`: the LoRA's file."""
    c, (rank, alpha) = config, trained_size(model)
    samples = [p.sample for p in feed.pictures if not p.of_class]
    buckets = Counter(p.bucket for p in feed.pictures)
    sizes = ", ".join(f"{w}x{h}: {n}" for (w, h), n in sorted(buckets.items(), key=lambda b: -b[1])[:6])
    batches, views = len(feed.batches(0)), len(feed.pictures[0].views)
    accumulated = f", {c.gradient_accumulation} batches a step" if c.gradient_accumulation > 1 else ""
    shared = {id(one.group) for one in model.layers.values() if isinstance(one, LoraLayer) and one.group is not None}
    one_a = f", one A in {number_of(len(shared), 'place')} of several layers" if shared else ""
    by_folder = f" = {feed.seen} by their folders" if c.folder_repeats else ""
    rows = [
        ("base model", f"{c.base_model} ({model.family.facts.words})"),
        ("images", f"{len(feed.pictures)}" + (f", {views} views each" if views > 1 else "")),
        heldout.row(held, c, len(samples)),
        besides_row(besides(c, feed, held, samples, steps), c),
        ("buckets", sizes + (f", … {len(buckets)} in all" if len(buckets) > 6 else "")),
        (
            "steps",
            f"{len(feed.pictures)} images x {c.repeats} repeats{by_folder} / batch {c.batch_size} = {batches} batches"
            f"{accumulated}, x {c.epochs} epochs = {steps} steps" + (f", {done} done" if done else ""),
        ),
        *lora_rows(model, one_a),
        *preserving_row(c, feed),
        ("learning rate", f"{c.learning_rate:g}, {c.effective_lr_schedule}"),
        (PRECISION, f"{precision}, LoRA fp32{vae_words(precision, model.family.device)}"),
        ("device", device_name(model.family.device)),
        *([("memory", memory_words(c))] if memory_words(c) else []),
        *plain_way(model, c),
        *not_dora(model, c),
        ("output", str(output)),
    ]
    if c.prediction is None and (how := model.family.facts.guessed(c.base_model)):
        told = f"{model.family.objective.prediction}: {how}; if that is wrong, set prediction"
        rows.insert(1, ("answers with", told))
    if c.new_token:
        rows.insert(-4, ("new words", tell_new_words(c, samples)))
    if not 0.25 <= alpha / rank <= 2:
        rows.append(("note", f"alpha / rank is {alpha / rank:g}; usual is 0.25 to 2"))
    native = model.family.facts.made_for(c.base_model)
    rows += [("note", text) for text in odd_settings(c, native, len(samples), steps)]
    if not c.folder_repeats and set((said := numbered(s.name for s in samples)).values()) - {1}:
        told = f"folders say how often their pictures are seen ({folders_in_words(said)}), and nobody counts that"
        rows.append(("note", f"{told}; folder_repeats: true does, as kohya's trainers do"))
    if c.init_lora:
        own_rank = f"its rank {rank} in place of lora_rank" if rank != c.lora_rank else ""
        rows.insert(1, ("starts from", ", ".join(filter(None, [str(c.init_lora), model.resized or own_rank]))))
    if most := max((len(p.references) for p in feed.pictures), default=0):
        many = "a reference" if most == 1 else f"up to {most} references"
        rows.insert(3, ("made from", f"{many} of {c.reference_dir}"))
    if c.training_adapter:
        rows.insert(1, ("training adapter", f"{c.training_adapter}, on while training alone"))
    return rows


def trained_size(model: Trained) -> tuple[int, float]:
    """Rank and alpha of most layers that are trained; the file's header has those of most of all."""
    (size, _), *_ = Counter((one.rank, one.alpha) for one in _moved(model)).most_common(1)
    return size


def lora_rows(model: Trained, more: str = "") -> list[tuple[str, str]]:
    """What is trained, and what `init_lora` has besides, which stays as it is."""
    moved, (rank, alpha), count = _moved(model), trained_size(model), sum(p.numel() for p in model.trained)
    size = f"rank {rank}, alpha {alpha:g}, {count / 1e6:.2f} M parameters"
    rows = [("LoRA", f"{number_of(len(moved), 'layer')}, {size}{more}")]
    if still := [one for one in model.layers.values() if one not in moved]:
        ranks = span(sorted({one.rank for one in still}))
        rows.append(("not trained", f"{number_of(len(still), 'layer')} of init_lora besides, of rank {ranks}"))
    return rows


def _moved(model: Trained) -> list[Adapter]:
    """The layers that are trained."""
    return [one for one in model.layers.values() if any(p.requires_grad for p in one.values().values())]


@dataclass(frozen=True)
class Service:
    """How much a run does besides training, where its config does not say."""

    times: int
    """Measurements of the held-out loss; three at least, as advice needs them."""
    rounds: int | None
    """Of previews between the first step and the last, at most; None: as often as is saved."""
    report: str
    """As the key. With `full` every training picture is looked at in the end, and with `one` somebody's own prompts
    are all drawn none the less."""
    levels: tuple[int, int] = LEVELS
    """Noise levels at which held-out and training pictures are measured."""


SERVICES = (
    Service(10, None, "full"),
    Service(6, 4, "full"),
    Service(3, 1, "full"),
    Service(3, 1, "short"),
    Service(3, 0, "short"),
    Service(3, 0, "short", FEW_LEVELS),
    Service(3, 0, "one", FEW_LEVELS),
)
"""From the most on. The first that takes no more than"""
SHARE = 0.15
"""of a run's time is taken, or the last."""


def settled(
    config: TrainConfig, feed: Feed, held: HeldOut, samples: Sequence[Sample], steps: int
) -> tuple[TrainConfig, HeldOut]:
    """The config with what it leaves open filled in (val_every, sample_every, report), and what is measured.

    What a key asks for is not counted: it is somebody's wish.
    """
    c = config
    for service in SERVICES:
        measured = held.every and (c.val_every or -(-steps // service.times))
        shown = "short" if service.report == "one" and c.sample_prompts else service.report
        report = shown if c.report == "auto" else c.report
        filled = c.model_copy(update={"sample_every": _rounds(c, service, steps), "report": report})
        found = replace(held, every=measured, looks_at_whole=held.looks_at_whole and report == "full")
        found = at_levels(found, LEVELS if c.val_every else service.levels)
        shares = besides(filled, feed, found, samples, steps)
        open_ = {HELD: c.val_every is None, PREVIEWS: filled.sample_every != c.sample_every, REPORT: c.report == "auto"}
        if sum(share for what, share in shares.items() if open_[what]) <= SHARE:
            break
    return filled, found


def _rounds(config: TrainConfig, service: Service, steps: int) -> int | None:
    """`sample_every` of a run of so many steps."""
    c = config
    if c.sample_every is not None or c.sample_every_epochs is not None:
        return c.sample_every
    if service.rounds is None:
        return c.save_steps
    if service.rounds == 0:
        return 0
    return c.save_steps * max(1, -(-steps // (c.save_steps * (service.rounds + 1))))


def besides(config: TrainConfig, feed: Feed, held: HeldOut, samples: Sequence[Sample], steps: int) -> dict[str, float]:
    """What of the run's time is not training, as shares of the whole, forecast in forward passes; by what takes it."""
    c, previews = config, previews_of(config, samples)
    guided = "negative" in feed.family.facts.features  # then a step takes two passes, one with the negative prompt
    every = c.preview_steps(feed.steps_per_epoch)
    rounds = (-(-steps // every) - 1 if every else 0) + c.sample_first  # those of the last step are the report's
    # As if a picture had the size that is trained.
    area = math.prod(c.effective_sample_size) / math.prod(c.size)

    def drawn(how: Sampling) -> float:
        return area * how.steps * (2 if guided and how.cfg != 1 else 1)

    passes = {
        HELD: heldout.passes(held, c, steps),
        PREVIEWS: rounds * sum(drawn(p.sampling) for p in previews),
        REPORT: drawn(usual(c).sampling) * drawn_in_all(c, previews, samples, held),
    }
    whole = sum(passes.values()) + heldout.trained(c, steps)
    return {what: count / whole for what, count in passes.items()}


def besides_row(shares: Mapping[str, float], config: TrainConfig) -> tuple[str, str]:
    """Of the table: what takes time, and each with the key with which it takes less."""
    drawn = "report: short" if config.report == "full" else "sample_steps; report: full draws more"
    less = {HELD: "val_every", PREVIEWS: "sample_every", REPORT: drawn}
    each = ", ".join(f"{what} {percent(share)} (less with {less[what]})" for what, share in shares.items() if share)
    return BESIDES, f"about {percent(sum(shares.values()))} of the time: {each}" if each else "nothing"


_QUICK_VAE = ", VAE bf16 if its latents agree"


def vae_words(precision: str, device: torch.device) -> str:
    """Of the precision's row."""
    return _QUICK_VAE if encoding(precision, device) == torch.bfloat16 else ""


def afterwards(rows: Sequence[tuple[str, str]], latents: str) -> list[tuple[str, str]]:
    """The table of a finished run, without what it forecast. `latents`: what was told of how they were made; empty
    where the cache had them all."""
    made = latents.partition(":")[0]  # the figures stand in the log
    found = {PRECISION: f", {made}" if made else ""}
    return [
        (what, value.replace(_QUICK_VAE, found[what]) if what in found else value)
        for what, value in rows
        if what != BESIDES
    ]


def odd_settings(config: TrainConfig, native: tuple[int, int], pictures: int, steps: int) -> list[str]:
    """What may be meant and rarely is, of a run of `steps` steps on so many pictures, with a base that was made for
    `native` (width, height) in pixels; each with what to write instead."""
    c, told = config, []
    usual = USUAL_RATES.get(c.optimizer)
    if usual is not None and c.learning_rate > MOST_RATE * usual:
        told.append(f"learning_rate {c.learning_rate:g} is high for {c.optimizer}: {usual:g} is usual")
    if pictures < FEW:
        told.append(f"{pictures} pictures are few: the LoRA will repeat them; 20 or more of a figure, 50 of a style")
    share = math.prod(c.size) / math.prod(native)
    if not FAR < share < 1 / FAR:
        size, made = ("x".join(map(str, pair)) for pair in (c.size, native))
        told.append(
            f"resolution {size} is far from {made}, which this base was made for: it draws badly at such a size"
        )
    if steps < SHORT:
        told.append(f"{steps} steps are few: a LoRA mostly needs {USUAL} and more; raise epochs")
    if c.train_text_encoder and c.text_encoder_start >= steps:
        told.append(f"text_encoder_start {c.text_encoder_start} of {steps} steps: the text encoder is never trained")
    return told + odd_schedule(c, steps)


def odd_schedule(config: TrainConfig, steps: int) -> list[str]:
    """The same of keys that count steps, whatever is trained."""
    c, told = config, []
    if c.preserve_weight and c.preserve_every >= steps:
        told.append(
            f"preserve_every {c.preserve_every} of {steps} steps: in the first alone, when nothing is learnt yet"
        )
    if c.warmup_steps >= steps:
        told.append(f"warmup_steps {c.warmup_steps} of {steps} steps: learning_rate is never reached")
    if c.val_every is not None and c.val_every > steps:
        told.append(f"val_every {c.val_every} of {steps} steps: measured once, at the end; leave it out for ten times")
    return told


def plain_way(model: Model, config: TrainConfig) -> list[tuple[str, str]]:
    """A row where layers are not computed the quick way."""

    def is_plain(one: Adapter) -> bool:
        return not isinstance(one, LoraLayer) or bool(one.dropout) or one.base is not one.frozen

    plain = [one for one in model.layers.values() if is_plain(one)]
    if not plain:
        return []
    named = {"lora_dropout": config.lora_dropout, "training_adapter": config.training_adapter}
    why = ", ".join(key for key, value in named.items() if value) or f"adapter: {config.adapter}"
    return [("speed", f"{len(plain)} of {len(model.layers)} layers are computed the plain, slower way ({why})")]


def not_dora(model: Model, config: TrainConfig) -> list[tuple[str, str]]:
    """A row where `run.build` gives layers a plain LoRA in place of a DoRA."""
    plain = [path for path, one in model.layers.items() if type(one) is LoraLayer]
    if config.adapter != "dora" or not plain:
        return []
    return [("adapter", f"lora in place of dora for {', '.join(plain)}: of one output, where ComfyUI misreads a DoRA")]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'' if threads == 1 else 's'}" if device.type == "cpu" else device.type
