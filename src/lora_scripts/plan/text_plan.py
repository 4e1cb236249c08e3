"""`lora-scripts plan` for a run on texts: what it will do and take, from a rehearsal, and what to change if it does not
fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_scripts.compute.meter import GB
from lora_scripts.config.schema import TrainConfig
from lora_scripts.events import Sink, ignore
from lora_scripts.plan.command import BUDGET, PlanOptions, as_words, note_of, to_type
from lora_scripts.plan.forecast import ROOM, changed_config, in_passing
from lora_scripts.plan.stage import Stage, place_of, scratch_in, terminable
from lora_scripts.plan.text_worker import TextMeasured
from lora_scripts.run.configs import can_be_rounded, smaller_batches
from lora_scripts.run.texts.preflight import preflight

WORKER = "lora_scripts.plan.text_worker"
PHASES = {"load": "loading", "step": "a step", "measure": "measuring", "answer": "answering"}
"""What a rehearsal goes through, and how a table calls it."""


@dataclass(frozen=True)
class TextProposal:
    """What to change so that it fits."""

    changes: Mapping[str, Any]
    command: str
    """To type."""
    measured: TextMeasured | None
    """Its rehearsal; None where that would have taken too long."""


@dataclass(frozen=True)
class TextPlan:
    """The answer."""

    measured: TextMeasured
    limit: int
    """Bytes of memory to fit into; 0: unknown."""
    fits: str
    """ "yes", "no", or "unknown"."""
    seconds: Mapping[str, float]
    disk: Mapping[str, int]
    in_passing: int
    """Bytes that are on the disk for a moment, beyond those of `disk`."""
    free_disk: int
    proposal: TextProposal | None = None
    note: str = ""

    @property
    def peak(self) -> int:
        """The highest use of memory, in bytes."""
        return max(self.measured.peaks.values(), default=0)


def plan_texts(options: PlanOptions, sink: Sink = ignore) -> TextPlan:
    """What the run of a config will take, without starting it. UserError for what `train` would refuse."""
    config, memory = options.config, round((options.memory or 0) * GB)
    ready = preflight(config, resume=None, sink=sink)
    place = place_of(config.output_dir)
    with terminable(), scratch_in(place) as scratch:
        stage = Stage(WORKER, TextMeasured.read, PHASES, scratch, memory, sink, profile=options.profile)
        measured = stage.rehearse(config, "the heaviest batch, one measurement, one answer")
        limit = memory or measured.there
        fits = _verdict(measured, limit)
        proposal = _propose(options, stage, limit) if fits == "no" else None
    free = shutil.disk_usage(place).free
    times, disk = _times(config, measured), _disk(config, measured)
    more = in_passing(config, measured.steps, measured.state, measured.lora) if disk else 0
    return TextPlan(measured, limit, fits, times, disk, more, free, proposal, note_of(ready.folder))


def _verdict(measured: TextMeasured, limit: int) -> str:
    if measured.short:
        return "no"
    peak = max(measured.peaks.values(), default=0)
    return "unknown" if not limit or not peak else "yes" if peak <= ROOM * limit else "no"


def _ladder(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """What to change, less first: fewer records at a time, accumulated to make up, blocks computed twice, a base in
    8 bits, shorter records. Each rung keeps what those before it changed."""
    changes: dict[str, Any] = {}
    for smaller in smaller_batches(config, config.batch_size):
        changes |= smaller
        yield dict(changes)
    if not config.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
        yield dict(changes)
    if can_be_rounded(config):
        changes["base_precision"] = "int8"
        yield dict(changes)
    length = config.max_length
    while length > 512:
        length //= 2
        changes["max_length"] = length
        yield dict(changes)


def _propose(options: PlanOptions, stage: Stage[TextMeasured], limit: int) -> TextProposal | None:
    """The first rung of the ladder that a rehearsal shows to fit, or the first that there is no time to rehearse."""
    spent = 0.0
    for changes in _ladder(options.config):
        command = to_type(options, changes)
        if spent + stage.took > BUDGET:
            return TextProposal(changes, command, None)
        tried = stage.rehearse(changed_config(options.config, changes), ", ".join(as_words(changes)))
        spent += stage.took
        if _verdict(tried, limit) == "yes":
            return TextProposal(changes, command, tried)
    return None


def _times(config: TrainConfig, m: TextMeasured) -> dict[str, float]:
    """Seconds of the parts of the run; none where memory ran out."""
    if m.at != "done":
        return {}
    every = config.preview_steps(max(1, m.steps // config.epochs))
    previews = (m.steps // every if every else 0) + 2
    return {
        "preparing": m.seconds.get("load", 0.0),
        "steps": m.steps * m.seconds.get("step", 0.0),
        "measuring": m.measurements * m.seconds.get("measure", 0.0),
        "answers": previews * m.answers * m.seconds.get("answer", 0.0),
    }


def _disk(config: TrainConfig, m: TextMeasured) -> dict[str, int]:
    """Bytes of what the run leaves; none where memory ran out."""
    if m.at != "done":
        return {}
    saves = (m.steps - 1) // config.save_steps
    kept = saves if config.keep_last is None else min(saves, config.keep_last)
    return {"LoRAs": (kept + 2) * m.lora, "resume state": m.state}
