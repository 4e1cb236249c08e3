"""The process that a run on texts is rehearsed in: `python -m lora_scripts.plan.text_worker`, see `stage.serve`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.compute.meter import Meter, ran_out
from lora_scripts.config.schema import TrainConfig
from lora_scripts.events import ignore
from lora_scripts.plan.stage import Tell, serve

if TYPE_CHECKING:
    from lora_scripts.run.texts.story import TextParts

TIMED = 3
"""Steps that are timed, after one that warms up."""
HEADER = 130
"""Bytes of a file's header for each tensor."""


@dataclass
class TextMeasured:
    """What a rehearsal found so far."""

    at: str = "load"
    """What is being done: load, step, measure, answer, done."""
    short: bool = False
    """That memory ran out there."""
    device: str = ""
    there: int = 0
    """Bytes of memory that there are; 0: not known."""
    rows: list[tuple[str, str]] = field(default_factory=list)
    """The table of the run."""
    steps: int = 0
    measurements: int = 0
    answers: int = 0
    """Questions that are answered in a preview."""
    seconds: dict[str, float] = field(default_factory=dict)
    """load, with all that is encoded; of one step, one measurement, one answer."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Bytes, by what was done."""
    lora: int = 0
    """Bytes of the adapter's folder."""
    state: int = 0
    """Bytes of a resume state."""
    profile: dict[str, Any] | None = None
    """Where the time of a step goes, if it was asked for: a `compute.profile.Profile`."""

    @staticmethod
    def read(values: Mapping[str, Any]) -> TextMeasured:
        """From `asdict`, through JSON and back."""
        found = TextMeasured(**values)
        found.rows = [(name, value) for name, value in found.rows]
        return found


def rehearse(task: Mapping[str, Any], tell: Tell) -> None:
    """Measures a run, all of it as it is, except that it is cut short and writes elsewhere; tells a `TextMeasured`
    time and again."""
    from lora_scripts.compute.device import choose_device
    from lora_scripts.run.run_folder import RunFolder
    from lora_scripts.run.texts import preflight, story

    config = TrainConfig.model_validate(task["config"])
    measured, device = TextMeasured(), choose_device(config.device)
    meter = Meter(device)

    def enter(at: str) -> None:
        measured.peaks[measured.at] = meter.peak()
        meter.restart()
        measured.at = at
        tell(asdict(measured))

    if task["memory"]:
        meter.limit_to(task["memory"])
    measured.device, measured.there = str(device), meter.there()
    tell(asdict(measured))
    try:
        begun = time.perf_counter()
        ready = preflight.preflight(config, resume=None)
        folder = RunFolder(Path(task["scratch"]) / config.name, config.name, suffix="")
        parts = story.assemble(config, folder, ready.split, ignore)
        measured.seconds["load"] = time.perf_counter() - begun
        measured.rows = [row for row in story.rows_of(parts) if row[0] != "output"]
        _measure(parts, measured, enter)
        if task["profile"]:
            measured.profile = _profile(parts)
            tell(asdict(measured))
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        measured.short = True
        measured.peaks[measured.at] = meter.peak()
        tell(asdict(measured))


def _measure(parts: TextParts, measured: TextMeasured, enter: Callable[[str], None]) -> None:
    """A few steps, the heaviest batch first; one measurement; one answer; what is written."""
    from lora_scripts.run.texts import answers
    from lora_scripts.train import state as states

    p, config, every = parts, parts.config, parts.held.every
    measured.steps, measured.answers = p.state.total, len(p.questions)
    measured.measurements = -(-p.state.total // every) + 1 if every else 0
    enter("step")
    batches, lengths, size = p.feed.batches(0), p.encoded.trained.lengths, config.gradient_accumulation
    heaviest = sorted(batches, key=lambda batch: -sum(lengths[i] for i in batch))[: min(size, 2)]
    usual = [batches[i * size : (i + 1) * size] for i in range(TIMED)]
    p.model.train(True)
    first, *rest = (_step(p, window) for window in [heaviest, *filter(None, usual)])
    measured.seconds["step"] = sum(rest) / len(rest) if rest else first
    enter("measure")
    if p.held.on:
        begun = time.perf_counter()
        p.model.train(False)
        p.held.outside.losses()
        p.held.inside.losses()
        measured.seconds["measure"] = time.perf_counter() - begun
    enter("answer")
    if p.questions:
        begun = time.perf_counter()
        answers.answered_now(p.model, p.ema, config, p.questions[:1])
        measured.seconds["answer"] = time.perf_counter() - begun
    weights, width = p.model.weights(), 4 if config.save_precision == "fp32" else 2
    measured.lora = sum(one.numel() * width + HEADER for one in weights.values())
    measured.state = sum(
        len(piece) for file in states.pack(p.state, weights, p.model.optimizer).values() for piece in file
    )
    enter("done")


def _profile(parts: TextParts) -> dict[str, Any]:
    """Of the run's first step."""
    from lora_scripts.compute.device import DTYPES
    from lora_scripts.compute.profile import Watch

    watch = Watch(parts.device, DTYPES[parts.precision])
    window = parts.feed.batches(0)[: parts.config.gradient_accumulation]
    parts.model.train(True)
    while not watch.done:
        watch.ended(_step(parts, window))
    return asdict(watch.told())


def _step(parts: TextParts, window: list[list[int]]) -> float:
    """Seconds of one step of the optimizer on these batches."""
    import torch

    begun = time.perf_counter()
    for indices in window:
        loss, count = parts.model.family.loss(parts.feed.batch(indices))
        (loss / count).backward()
        parts.model.masters.gather()
    torch.nn.utils.clip_grad_norm_(parts.model.trained, parts.config.max_grad_norm or float("inf"))
    parts.model.optimizer.step()
    parts.model.optimizer.zero_grad(set_to_none=True)
    if parts.device.type == "cuda":
        torch.cuda.synchronize(parts.device)
    return time.perf_counter() - begun


if __name__ == "__main__":
    serve(rehearse)
