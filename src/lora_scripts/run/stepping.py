"""The steps of a run and what is saved of them, whether it trains on pictures or on texts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from lora_scripts.compute.meter import GB, Meter
from lora_scripts.config.keys.training import DESTROYS
from lora_scripts.config.schema import TrainConfig
from lora_scripts.events import Note, Saved, Sink, Stepped
from lora_scripts.formats import io
from lora_scripts.run.heldout import Measuring
from lora_scripts.run.parts import Probed, Trained
from lora_scripts.run.run_folder import STATES, RunFolder
from lora_scripts.run.shortage import adapting
from lora_scripts.train import state as states
from lora_scripts.train.advise import Facts
from lora_scripts.train.average import Ema
from lora_scripts.train.loop import Batch, Hooks, LoopSettings, StepFacts, run_loop
from lora_scripts.train.optim import Rates
from lora_scripts.train.passes import Pass
from lora_scripts.train.progress import Board, Smoothed
from lora_scripts.train.state import RunState

B = TypeVar("B", bound=Batch)


class EachEpoch(Protocol):
    """A feed, of which the number of steps in an epoch counts here."""

    @property
    def steps_per_epoch(self) -> int: ...


class Run(Protocol):
    """What the parts of every run are, by the names that they have in `Parts`."""

    @property
    def config(self) -> TrainConfig: ...
    @property
    def folder(self) -> RunFolder: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def model(self) -> Trained: ...
    @property
    def feed(self) -> EachEpoch: ...
    @property
    def held(self) -> Probed: ...
    @property
    def rates(self) -> Rates: ...
    @property
    def ema(self) -> Ema | None: ...
    @property
    def scaler(self) -> torch.amp.GradScaler: ...
    @property
    def state(self) -> RunState: ...


class Saver(ABC):
    """Writes what a run has learnt."""

    def __init__(self, run: Run, sink: Sink) -> None:
        self.run, self.sink = run, sink
        self.saved = run.state.step
        """The step of the last state on the disk; 0: none."""

    @abstractmethod
    def write(self, path: Path, what: str) -> None:
        """The LoRA as it is now; `what` it is, for people."""

    def complete(self) -> None:
        """What `save` had still to do when a kill came: the LoRA of the last state, and removing the oldest."""
        run = self.run
        if 0 < run.state.step < run.state.total:
            if not run.folder.checkpoint(run.state.step).exists():
                self.write(run.folder.checkpoint(run.state.step), "LoRA")
            run.folder.prune(run.config.keep_last, self.sink)

    def save(self) -> None:
        """The state first: a run that is killed between the two, or whose LoRA fp16 cannot hold, can go on."""
        run = self.run
        if run.device.type == "cpu":  # elsewhere the weights are copies
            run.model.files.require_unchanged()
        io.make_folder(run.folder.states)
        average = {} if run.ema is None else {f"ema.{name}": value for name, value in run.ema.values.items()}
        state, weights = run.folder.state(run.state.step), {**run.model.weights(), **average}
        io.write_folder(state, states.pack(run.state, weights, run.model.optimizer))
        self.saved = run.state.step
        run.folder.prune_states(STATES, self.sink)
        self.sink(Saved("state", state, run.state.step))
        if run.state.step < run.state.total:
            self.write(run.folder.checkpoint(run.state.step), "LoRA")
            run.folder.prune(run.config.keep_last, self.sink)


def measuring_of(
    run: Run, board: Board, sink: Sink, *, samples: str = "pictures", suffix: str = ".safetensors"
) -> Measuring:
    """What measures a run; `samples` and `suffix` as in `Facts`."""
    c = run.config
    facts = Facts(
        c.learning_rate,
        run.state.total,
        run.feed.steps_per_epoch,
        c.warmup_steps,
        run.folder.name,
        samples,
        suffix,
        c.epochs,
        below=0.0 if c.optimizer == "prodigy" else DESTROYS,  # it finds its own, and 1 is the highest
    )
    return Measuring(
        run.held,
        run.model,
        run.ema,
        run.state,
        facts,
        seed=c.seed,
        patience=c.patience,
        record=run.folder.measured,
        curves=board.scalars,
        sink=sink,
    )


def telling(run: Run, board: Board, sink: Sink, samples: str) -> Callable[[StepFacts], None]:
    """Tells of each step, TensorBoard and `sink`; `samples`: what its speed is counted in."""
    smoothed, meter = Smoothed(run.state.losses), Meter(run.device)

    def told(facts: StepFacts) -> None:
        smoothed.add(facts.loss)
        rate = facts.images / facts.seconds
        values = {
            "loss/step": facts.loss,
            "loss/smoothed": smoothed.value,
            "grad_norm": facts.grad_norm,
            f"{samples}_per_second": rate,
            "memory_gib": meter.peak() / GB or math.nan,
        }
        rates = {f"learning_rate/{g['name']}": g["lr"] for g in run.model.optimizer.param_groups}
        board.scalars(facts.step, values | rates)
        peak = run.config.learning_rate * facts.share
        numbers = (facts.loss, smoothed.value, peak, facts.grad_norm, rate, facts.seconds)
        sink(Stepped(facts.step, run.state.total, facts.epoch, *numbers, samples=samples))

    return told


def train_steps(
    run: Run,
    go: Pass[B],
    steps: Callable[[int, int, int | None], Iterator[tuple[int, list[B]]]],
    measuring: Measuring,
    saver: Saver,
    *,
    told: Callable[[StepFacts], None],
    preview: Callable[[], None],
    previews: int,
    stopped: Callable[[], int],
    sink: Sink,
    save: Callable[[], None] | None = None,
) -> bool:
    """All steps from where the state stands; False if it was stopped before the last.

    `steps(first, total, most)` gives the epoch and the batches of each, of at most `most` samples, None: whole.
    `preview` leaves so many `previews` in samples/. `save`: in place of `saver`'s."""
    c, state = run.config, run.state
    preview_every = c.preview_steps(run.feed.steps_per_epoch)

    def keep_best() -> None:
        if measuring.at_best:
            saver.write(run.folder.best, "best LoRA")

    run.model.train(True)
    if measuring.ended and state.step < state.total:
        sink(Note("note: this run had ended by itself, by its patience; patience=null lets it go on"))
    if state.step == 0:
        run.folder.forget_measured(sink)
    measuring.begin(from_lora=c.init_lora is not None)
    keep_best()
    # What a step had still to do when it was stopped or killed, after it was saved.
    due = preview_every and state.step % preview_every == 0 and 0 < state.step < state.total and not measuring.ended
    if (due and not run.folder.has_samples(state.step, previews)) or (c.sample_first and state.step == 0):
        preview()
    hooks = Hooks(told, save or saver.save, preview, lambda: bool(stopped()), measuring.measure, keep_best)
    settings = LoopSettings(
        state.total,
        run.rates,
        c.max_grad_norm,
        c.seed,
        c.save_steps,
        preview_every,
        run.held.every,
    )

    def loop(most: int | None) -> bool:
        def of(first: int, total: int) -> Iterator[tuple[int, list[B]]]:
            return steps(first, total, most)

        return run_loop(go, of, run.model.optimizer, run.scaler, settings, state, hooks, run.ema)

    return measuring.ended or adapting(loop, c, state, run.model.optimizer, sink)
