"""One training run: from a config to a proved LoRA file and a report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.compute.device import DTYPES, choose_device, choose_precision, peak_memory
from lora_scripts.config.load import dump_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.data.scan import Sample
from lora_scripts.families.base import Batch
from lora_scripts.formats import io
from lora_scripts.loras.on_model import read_lora
from lora_scripts.run.build import build_model
from lora_scripts.run.export import Exporter
from lora_scripts.run.finish import finish
from lora_scripts.run.folder import RunFolder
from lora_scripts.run.heldout import HeldOut
from lora_scripts.run.holding import split
from lora_scripts.run.memory import check_tiles
from lora_scripts.run.new_words import set_stop
from lora_scripts.run.objective import objective_of
from lora_scripts.run.pictures import build_feed
from lora_scripts.run.previews import Preview, draw_previews, previews_of
from lora_scripts.run.prior import class_samples
from lora_scripts.run.resume import new_state, restore
from lora_scripts.run.table import plan_rows
from lora_scripts.train import state as states
from lora_scripts.train.average import Ema, averaged
from lora_scripts.train.loop import Hooks, LoopSettings, StepFacts, run_loop
from lora_scripts.train.optim import Rates
from lora_scripts.train.progress import Bar, Board, Counter, show_plan


class Run:
    """Everything that one run holds; `start` is the story."""

    def __init__(self, config: TrainConfig, folder: RunFolder, samples: list[Sample], *, resume: bool) -> None:
        self.config, self.folder, self.resume = config, folder, resume
        self.samples, self.held_out = split(config, samples)
        self.interrupted = False

    def start(self) -> None:
        """Checks, prepares, trains, exports, proves and reports. UserError for a person's mistake."""
        config = self.config
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        initial = read_lora(config.init_lora) if config.init_lora else {}
        with self.folder.locked(), self._signals():
            found = self.folder.check(resume=self.resume)  # again: an interrupted save has been put right
            self._load(initial)
            self._plan()
            restore(self, found)
            self._show()
            io.write_text(self.folder.path / "config.yaml", dump_config(config))
            cache = Cache(config.cache_dir or self.folder.path / "cache", io.write_atomic)
            self.feed.fill(cache, self._encoded(Counter()))
            self.held.fill(cache, self._encoded(Counter()))
            self.family.rest(text_encoder=self.feed.cache_text)
            if not self._train():
                print(f"stopped at step {self.state.step}; everything is saved, go on with --resume", flush=True)
                raise KeyboardInterrupt
            finish(self)

    # --- preparing ---------------------------------------------------------------------------------------------------

    def _load(self, initial: dict[str, LoraWeights]) -> None:
        self.model = build_model(self.config, self.device, self.precision, initial)
        self.family, self.layers, self.optimizer = self.model.family, self.model.layers, self.model.optimizer

    def _plan(self) -> None:
        c = self.config
        with self.model.off():
            prior = self._class_pictures()
        self.feed = build_feed(c, self.family, self.samples, prior)
        check_tiles(c, [p.bucket for p in self.feed.pictures])
        self.total = self.feed.steps_per_epoch * c.epochs
        set_stop(self.optimizer, c.token_stop, self.total)
        self.held = HeldOut(self, self.held_out)
        self.exporter = Exporter(self, DTYPES[c.save_precision])
        self.rates = Rates(c.effective_lr_schedule, c.warmup_steps, c.lr_cycles, c.lr_power)
        self.ema = Ema(self.model.weights(), c.ema_decay) if c.ema_decay else None
        self.state = new_state(self)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def _class_pictures(self) -> list[Sample]:
        return class_samples(self.config, self.family, self.folder.path / "class_images", self._encoded(Counter()))

    def _show(self) -> None:
        show_plan(plan_rows(self))

    def _encoded(self, counter: Counter) -> Callable[[str, int, int], None]:
        """The counter; it ends the run where it stands when Ctrl-C was pressed: what is encoded lies in the cache."""

        def tell(what: str, done: int, total: int) -> None:
            counter(what, done, total)
            if self.interrupted:
                raise KeyboardInterrupt

        return tell

    # --- training ----------------------------------------------------------------------------------------------------

    def _train(self) -> bool:
        c = self.config
        every = c.preview_steps(self.feed.steps_per_epoch)
        settings = LoopSettings(self.total, self.rates, c.max_grad_norm, c.seed, c.save_steps, every)
        self.objective = objective_of(c)
        settings = replace(settings, measure_every=self.held.every)
        self.model.train(True)
        self.board = Board(self.folder.logs, self.state.step)
        with Bar(self.total, self.state.step) as self.bar:
            self.bar.warm(self.state.losses)
            hooks = Hooks(
                self._told, self._save, self.preview, lambda: self.interrupted, self.held.measure, self.held.keep_best
            )
            try:
                self.held.begin()
                if c.sample_first and self.state.step == 0:
                    self.preview()
                return self.held.ended or run_loop(
                    self._loss, self.feed.steps, self.optimizer, self.scaler, settings, self.state, hooks, self.ema
                )
            finally:
                self.board.close()

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        return self.family.loss(batch, self.objective)

    def _told(self, facts: StepFacts) -> None:
        rate = facts.images / facts.seconds
        self.bar.tell(facts, rate)
        values = {
            "loss/step": facts.loss,
            "loss/smoothed": self.bar.smoothed,
            "grad_norm": facts.grad_norm,
            "images_per_second": rate,
            "memory_gib": peak_memory(self.device),
        }
        rates = {f"learning_rate/{g['name']}": g["lr"] for g in self.optimizer.param_groups}
        self.board.scalars(facts.step, values | rates)

    def _save(self) -> None:
        """The state first: a run that is killed between the two, or whose LoRA fp16 cannot hold, can go on."""
        self.folder.states.mkdir(exist_ok=True)
        io.write_folder(self.folder.state(self.state.step), states.pack(self.state, self._weights(), self.optimizer))
        self.folder.remove_states_before(self.state.step)
        if self.state.step < self.total:
            self.exporter.write(self.folder.checkpoint(self.state.step))
            self.folder.prune(self.config.keep_last)

    def _weights(self) -> dict[str, Tensor]:
        """What is trained, and its average, by name."""
        average = {} if self.ema is None else {f"ema.{name}": value for name, value in self.ema.values.items()}
        return {**self.model.weights(), **average}

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the layers hold the weights that are shown and exported."""
        return averaged(self.model.trained, self.optimizer, self.ema)

    @cached_property
    def previews(self) -> list[Preview]:
        return previews_of(self.config, self.samples)

    def preview(self) -> None:
        """Draws every preview with what a file would hold now."""
        draw_previews(self)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C (or a polite kill) ends the run after the step, saved; the second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            print("\nstopping after this step (once more: at once, without saving)", flush=True)

        numbers = [signal.SIGINT, signal.SIGTERM]
        before = [signal.signal(n, on_signal) for n in numbers]
        try:
            yield
        finally:
            for n, old in zip(numbers, before, strict=True):
                signal.signal(n, old)
