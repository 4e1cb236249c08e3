"""`lora-scripts plan`: what a run will do and take, from a rehearsal, and what to change if it does not fit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.compute.meter import GB
from lora_scripts.config.schema import TrainConfig
from lora_scripts.events import Sink, ignore
from lora_scripts.families import table
from lora_scripts.plan import forecast
from lora_scripts.plan.measured import PHASES, Measured
from lora_scripts.plan.stage import Stage, place_of, scratch_in, terminable
from lora_scripts.run.preflight import Split, preflight
from lora_scripts.run.run_folder import RunFolder, step_of
from lora_scripts.units import typed

WORKER = "lora_scripts.plan.worker"
BUDGET = 300.0
"""Seconds for rehearsals of proposals; beyond it a proposal is made without one."""


@dataclass(frozen=True)
class PlanOptions:
    """What `lora-scripts plan` is asked."""

    config: TrainConfig
    file: Path
    overrides: Sequence[str]
    memory: float | None = None
    """GB to fit into, in place of what is there."""
    profile: bool = False
    """Whether it is to say where the time of a step goes."""


@dataclass(frozen=True)
class Proposal:
    """What to change so that it fits."""

    changes: Mapping[str, Any]
    command: str
    """To type."""
    measured: Measured | None
    """Its rehearsal; None where that would have taken too long."""
    seconds: float = 0.0
    """Of the whole run with it."""


@dataclass(frozen=True)
class Plan:
    """The answer."""

    measured: Measured
    limit: int
    """Bytes of memory to fit into; 0: unknown."""
    fits: str
    """ "yes", "barely", "no", or "unknown" where the system does not tell how much memory there is."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    disk: Mapping[str, int] = field(default_factory=dict)
    in_passing: int = 0
    free_disk: int = 0
    proposal: Proposal | None = None
    note: str = ""


def plan(options: PlanOptions, sink: Sink = ignore) -> Plan:
    """What the run of a config will take, without starting it. UserError for what `train` would refuse."""
    begun = time.perf_counter()
    ready = preflight(options.config, resume=None, sink=sink)
    place = place_of(options.config.output_dir)
    looked = time.perf_counter() - begun
    with terminable(), scratch_in(place) as scratch:
        stage = stage_of(ready.samples, scratch, round((options.memory or 0) * GB), sink, profile=options.profile)
        return _plan(options, stage, looked, note_of(ready.folder))


def stage_of(samples: Split, scratch: Path, memory: int, sink: Sink, *, profile: bool = False) -> Stage[Measured]:
    """Where runs on these pictures are rehearsed, in `memory` bytes (0: all there are)."""
    parted = (samples.trained, samples.held_out)
    also = {"samples": [[sample.row() for sample in some] for some in parted]}
    return Stage(WORKER, Measured.read, PHASES, scratch, memory, sink, profile=profile, also=also)


def _plan(options: PlanOptions, stage: Stage[Measured], looked: float, note: str) -> Plan:
    config = options.config
    m = stage.rehearse(config, "the largest batch, one preview, one save")
    limit = round((options.memory or 0) * GB) or m.there
    fits = verdict(m, limit)
    proposal = None if fits in ("yes", "unknown") else propose(options, stage, m, limit, looked)
    if not m.done:
        return Plan(m, limit, fits, proposal=proposal, note=note)
    return Plan(
        m,
        limit,
        fits,
        forecast.times(config, m, looked + stage.start),
        forecast.disk(config, m),
        forecast.in_passing(config, m.steps, m.sizes["state"], m.sizes["lora"]),
        shutil.disk_usage(place_of(config.output_dir)).free,
        proposal,
        note,
    )


def verdict(m: Measured, limit: int) -> str:
    """Whether it fits into `limit` bytes, as in `Plan.fits`."""
    if m.short:
        return "no"
    if not limit or not m.peak:
        return "unknown"
    return "no" if m.peak > limit else "barely" if m.peak > forecast.target(m, limit) else "yes"


def propose(options: PlanOptions, stage: Stage[Measured], m: Measured, limit: int, looked: float) -> Proposal | None:
    """The first rung of the ladder that a rehearsal shows to fit, or the first that there is no time to rehearse."""
    config, spent = options.config, 0.0
    images = m.kinds[0].images if m.kinds else config.batch_size
    too_much, seen = forecast.over(m, limit), list[dict[str, Any]]()
    least = table.least_pixels(config.base_model)
    while changes := next((c for c in forecast.ladder(config, too_much, images, least) if c not in seen), None):
        seen.append(changes)
        if limit and not forecast.promising(config, changes, m, limit):
            continue
        command = to_type(options, changes)
        if spent + stage.took > BUDGET:
            return Proposal(changes, command, None)
        changed = forecast.changed_config(config, changes)
        tried = stage.rehearse(changed, ", ".join(as_words(changes)))
        spent += stage.took
        if verdict(tried, limit) == "yes":
            took = sum(forecast.times(changed, tried, looked + stage.start).values())
            return Proposal(changes, command, tried, took)
        too_much |= forecast.over(tried, limit)  # one that got further may show what else needs too much
    return None


def to_type(options: PlanOptions, changes: Mapping[str, Any]) -> str:
    """The command that trains with the changes laid over what was asked."""
    program = ["python", "train.py"] if Path("train.py").is_file() else ["lora-scripts", "train"]
    kept = [word for word in options.overrides if word.partition("=")[0].strip() not in changes]
    return typed([*program, "--config", str(options.file), *kept, *as_words(changes)])


def as_words(changes: Mapping[str, Any]) -> list[str]:
    """As a person types them: "batch_size=2"."""
    return [f"{key}={_word(value)}" for key, value in changes.items()]


def _word(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def note_of(folder: RunFolder) -> str:
    """What is to be said of an output folder that has a run already."""
    state = folder.newest_state()
    what, how = folder.there(state)
    if state is not None and what != "run":
        how = f"has a {what}: {how}"
    elif state is not None:
        how = f"has a run at step {step_of(state)}: add --resume to go on with it, or choose another output_dir"
    elif folder.final.exists() or folder.checkpoints():
        how = "has a run already: choose another output_dir"
    else:
        return ""
    return f"{folder.path} {how}; the figures are of a whole new run"


def figures(made: Plan) -> dict[str, Any]:
    """All of it as plain values: seconds and bytes."""
    m, proposal = made.measured, made.proposal
    kinds = [kind._asdict() for kind in m.kinds]
    out: dict[str, Any] = {
        "fits": made.fits,
        "device": m.device,
        "precision": m.precision,
        "table": m.rows,
        "steps": m.steps,
        "batches": kinds,
        "memory": {"limit": made.limit, "peak": m.peak, "phases": m.peaks, "ran_out_in": m.at if m.short else None},
        "measured_seconds": m.seconds,
        "seconds": {**made.seconds, "total": sum(made.seconds.values())} if made.seconds else None,
        "disk": {**made.disk, "total": sum(made.disk.values()), "free": made.free_disk} if made.disk else None,
        "profile": m.profile,
        "proposal": None,
        "note": made.note or None,
    }
    if proposal is not None:
        tried = proposal.measured
        out["proposal"] = {
            "overrides": as_words(proposal.changes),
            "command": proposal.command,
            "peak": tried.peak if tried else None,
            "seconds": proposal.seconds if tried else None,
        }
    return out
