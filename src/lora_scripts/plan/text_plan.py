"""`lora-scripts plan` for a run on texts: what it will do and take, from a rehearsal, and what to change if it does not
fit."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_scripts.compute.meter import GB
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.types import SCALING
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Note, Sink, ignore
from lora_scripts.plan.command import BUDGET, PlanOptions, as_words, note_of, to_type
from lora_scripts.plan.forecast import ROOM, changed_config
from lora_scripts.plan.stage import place_of, process_of, scratch_in, terminable
from lora_scripts.plan.text_worker import TextMeasured
from lora_scripts.run.texts.preflight import preflight

WORKER = "lora_scripts.plan.text_worker"


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
        begun = time.perf_counter()
        what = "the heaviest batch, one measurement, one answer"
        measured = _rehearse(config, scratch / "1", memory, sink, what, profile=options.profile)
        took, limit = time.perf_counter() - begun, memory or measured.there
        fits = _verdict(measured, limit)
        proposal = _propose(options, scratch, memory, limit, took, sink) if fits == "no" else None
    free = shutil.disk_usage(place).free
    times, disk = _times(config, measured), _disk(config, measured)
    return TextPlan(measured, limit, fits, times, disk, free, proposal, note_of(ready.folder))


def _rehearse(
    config: TrainConfig, folder: Path, memory: int, sink: Sink, what: str, *, profile: bool = False
) -> TextMeasured:
    """Measures a run of the config in a fresh process. UserErrors for what the run would refuse."""
    folder.mkdir()
    asked = config.model_dump(mode="json", exclude_unset=True)
    task = {"config": asked, "scratch": str(folder), "memory": memory, "profile": profile}
    sink(Note(f"rehearsing {what}"))
    measured, errors = TextMeasured(), folder / "errors.txt"
    with errors.open("wb") as printed, process_of(WORKER, printed) as process:
        assert process.stdin and process.stdout
        with process.stdin as pipe:
            pipe.write(json.dumps(task))
        for line in process.stdout:
            message = json.loads(line)
            if "faults" in message:
                raise_all([UserError(**fault) for fault in message["faults"]])
            measured = TextMeasured(**message)
        code = process.wait()
    killed = code in (-getattr(signal, "SIGKILL", 9), 128 + 9)  # Linux does so when memory runs out
    if code and not killed:
        output = errors.read_text("utf-8", "replace")
        raise RuntimeError(f"the rehearsal ended with code {code}, while {measured.at}:\n{output[-4000:]}")
    rows = [(name, value) for name, value in measured.rows]
    return replace(measured, rows=rows, short=measured.short or killed)


def _verdict(measured: TextMeasured, limit: int) -> str:
    if measured.short:
        return "no"
    peak = max(measured.peaks.values(), default=0)
    return "unknown" if not limit or not peak else "yes" if peak <= ROOM * limit else "no"


def _ladder(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """What to change, less first: fewer records at a time, accumulated to make up, blocks computed twice, a base in
    8 bits, shorter records. Each rung keeps what those before it changed."""
    changes: dict[str, Any] = {}
    batch, accumulation = config.batch_size, config.gradient_accumulation
    while batch > 1:
        batch, accumulation = -(-batch // 2), accumulation * 2
        changes |= {"batch_size": batch, "gradient_accumulation": accumulation}
        yield dict(changes)
    if not config.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
        yield dict(changes)
    if config.base_precision == "auto" and config.adapter not in SCALING:
        changes["base_precision"] = "int8"
        yield dict(changes)
    length = config.max_length
    while length > 512:
        length //= 2
        changes["max_length"] = length
        yield dict(changes)


def _propose(
    options: PlanOptions, scratch: Path, memory: int, limit: int, took: float, sink: Sink
) -> TextProposal | None:
    """The first rung of the ladder that a rehearsal shows to fit, or the first that there is no time to rehearse."""
    spent = 0.0
    for number, changes in enumerate(_ladder(options.config), 2):
        command = to_type(options, changes)
        if spent + took > BUDGET:
            return TextProposal(changes, command, None)
        begun, words = time.perf_counter(), ", ".join(as_words(changes))
        tried = _rehearse(changed_config(options.config, changes), scratch / str(number), memory, sink, words)
        spent += time.perf_counter() - begun
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
