"""One training run: from a config to a proved LoRA file and a report."""

from __future__ import annotations

import hashlib
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lora_scripts import __version__
from lora_scripts.config.load import dump_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.families.base import LoadOptions, Sampling, find_family, load_family
from lora_scripts.formats import io, metadata
from lora_scripts.formats.kohya import LoraWeights
from lora_scripts.generate.apply import check_fits, read_lora
from lora_scripts.lora.inject import inject, select
from lora_scripts.lora.layer import LoraLayer
from lora_scripts.losses.diffusion import Objective
from lora_scripts.run.export import Exporter
from lora_scripts.run.finish import finish
from lora_scripts.run.folder import RunFolder
from lora_scripts.run.table import plan_rows
from lora_scripts.train import state as states
from lora_scripts.train.device import DTYPES, choose_device, choose_precision, peak_memory
from lora_scripts.train.feed import Feed, Settings, plan_pictures
from lora_scripts.train.loop import Hooks, LoopSettings, StepFacts, run_loop
from lora_scripts.train.optim import Group, adamw
from lora_scripts.train.progress import Bar, Board, Counter, show_plan
from lora_scripts.train.state import RunState

# A resumed run may change these: they decide what is shown and kept, or are held against the data by their content.
FREE_KEYS = {
    *("train_data_dir", "metadata_path", "base_model", "vae", "init_lora", "output_dir", "cache_dir", "device"),
    *("save_steps", "keep_last", "save_precision", "metadata_captions"),
    *("sample_prompts", "sample_every", "sample_steps", "sample_cfg", "sample_negative", "sample_size"),
}


class Run:
    """Everything that one run holds; `start` is the story."""

    def __init__(self, config: TrainConfig, folder: RunFolder, samples: list[Sample], *, resume: bool) -> None:
        self.config, self.folder, self.samples, self.resume = config, folder, samples, resume
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
            self._restore(found)
            self._show()
            io.write_text(self.folder.path / "config.yaml", dump_config(config))
            self.feed.fill(
                Cache(config.cache_dir or self.folder.path / "cache", io.write_atomic), self._encoded(Counter())
            )
            self.family.rest(text_encoder=self.feed.cache_text)
            if not self._train():
                print(f"stopped at step {self.state.step}; everything is saved, go on with --resume", flush=True)
                raise KeyboardInterrupt
            finish(self)

    # --- preparing ---------------------------------------------------------------------------------------------------

    def _load(self, initial: dict[str, LoraWeights]) -> None:
        config = self.config
        options = LoadOptions(self.device, DTYPES[self.precision], config.vae)
        self.family = load_family(find_family(config.base_model), config.base_model, options)
        self.family.prediction = config.prediction
        self.base_digest = metadata.model_hashes(config.base_model).sha256 if config.base_model.is_file() else ""
        spec, layers = self.family.spec, self.family.trainable()
        if initial:
            assert config.init_lora is not None
            check_fits(initial, self.family, config.init_lora)
        image = select([p for p in layers if p.startswith(spec.image_root + ".")], config.targets, spec.groups)
        text = [p for p in layers if p.startswith(spec.text_root + ".")] if config.train_text_encoder else []
        paths = list(dict.fromkeys([*image, *text, *initial]))
        # A continued LoRA keeps its rank; layers that it lacks get the same.
        first = next(iter(initial.values()), None)
        self.rank, self.alpha = (first.rank, first.alpha) if first else (config.lora_rank, config.effective_alpha)

        def ranks(path: str) -> tuple[int, float]:
            return (initial[path].rank, initial[path].alpha) if path in initial else (self.rank, self.alpha)

        self.layers = inject(self.family.roots, paths, ranks, dropout=config.lora_dropout, seed=config.seed)
        self._set_weights({p: (w.down, w.up) for p, w in initial.items()})
        trained = set(image) | set(text)
        groups = [Group("unet", self._parameters(image), config.learning_rate)]
        if config.effective_text_encoder_lr is not None:
            groups.append(Group("text_encoder", self._parameters(text), config.effective_text_encoder_lr))
        for path, layer in self.layers.items():
            for p in (layer.down, layer.up):
                p.requires_grad_(path in trained)
            if path not in trained:
                layer.dropout = 0.0
        self.optimizer = adamw(groups, config.weight_decay)

    def _parameters(self, paths: list[str]) -> list[torch.nn.Parameter]:
        return [p for path in paths for p in (self.layers[path].down, self.layers[path].up)]

    def _plan(self) -> None:
        c = self.config
        pictures = plan_pictures(
            self.samples, c.size, self.family.spec.bucket_step, flip=c.flip, random_crop=c.random_crop, seed=c.seed
        )
        settings = Settings(
            c.batch_size, c.gradient_accumulation, c.repeats, c.seed, c.caption_dropout, c.shuffle_tags, c.keep_tags
        )
        self.feed = Feed(self.family, pictures, settings, cache_text=not c.train_text_encoder)
        self.total = self.feed.steps_per_epoch * c.epochs
        self.exporter = Exporter(self, DTYPES[c.save_precision])
        kept = c.model_dump(mode="json", exclude=FREE_KEYS)
        self.state = RunState(0, self.total, kept, self._data_digests(), self._environment())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def _data_digests(self) -> dict[str, str]:
        base, initial = self.config.base_model, self.config.init_lora
        parts = [f for part in ("unet", "text_encoder") for f in sorted((base / part).glob("*.safetensors"))]
        digests = {
            "base_model": self.base_digest or " ".join(metadata.model_hashes(f).sha256 for f in parts),
            "vae": self.family.fingerprint("vae"),
            "init_lora": metadata.model_hashes(initial).sha256 if initial else "",
        }
        for s in self.samples:
            digests[s.name] = hashlib.sha256(f"{s.digest}{s.caption}".encode()).hexdigest()
        return digests

    def _environment(self) -> dict[str, str]:
        return {
            "device": str(self.device),
            "precision": self.precision,
            "threads": str(torch.get_num_threads()),
            **versions(),
        }

    def _restore(self, found: Path | None) -> None:
        if found is None:
            return
        old, weights, moments = states.unpack(found)
        told = states.changes(old.config, self.state.config)
        new = self.state.data
        changed = [name for name in {**old.data, **new} if old.data.get(name) != new.get(name)]
        if changed:
            told.append(", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else ""))
        if told:
            raise UserError(
                f"cannot resume exactly, because something changed: {'; '.join(told)}",
                file=self.folder.path,
                hint="undo that, or start a new output_dir with init_lora to go on with new settings",
            )
        for change in states.changes(old.environment, self.state.environment):
            print(f"note: since the run began, {change}: the last bits may differ", flush=True)
        old.environment = self.state.environment
        self.state = old
        self._set_weights({p: (weights[f"{p}.down"], weights[f"{p}.up"]) for p in self.layers})
        states.restore_optimizer(self.optimizer, moments)
        if old.grad_scale is not None and self.scaler.is_enabled():
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": old.grad_scale})

    @torch.no_grad()
    def _set_weights(self, weights: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        for path, (down, up) in weights.items():
            layer: LoraLayer = self.layers[path]
            layer.down.copy_(down.reshape(layer.down.shape))
            layer.up.copy_(up.reshape(layer.up.shape))

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
        objective = Objective(c.prediction, c.min_snr_gamma, c.noise_offset)
        every = c.effective_sample_every
        settings = LoopSettings(
            self.total, c.lr_schedule, c.warmup_steps, c.max_grad_norm, objective, c.seed, c.save_steps, every
        )
        self._mode(training=True)
        self.board = Board(self.folder.logs, self.state.step)
        with Bar(self.total, self.state.step) as self.bar:
            self.bar.warm(self.state.losses)
            hooks = Hooks(self._told, self._save, self.preview, lambda: self.interrupted)
            try:
                return run_loop(self.family, self.feed, self.optimizer, self.scaler, settings, self.state, hooks)
            finally:
                self.board.close()

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
        weights = {
            f"{p}.{n}": t for p, layer in self.layers.items() for n, t in (("down", layer.down), ("up", layer.up))
        }
        self.folder.states.mkdir(exist_ok=True)
        io.write_folder(self.folder.state(self.state.step), states.pack(self.state, weights, self.optimizer))
        self.folder.remove_states_before(self.state.step)
        if self.state.step < self.total:
            self.exporter.write(self.folder.checkpoint(self.state.step))
            self.folder.prune(self.config.keep_last)

    def _mode(self, *, training: bool) -> None:
        for layer in self.layers.values():
            layer.train(training)

    @property
    def prompts(self) -> list[str]:
        """Of the previews: the config's, or the first two captions of the data set."""
        captions = dict.fromkeys(s.caption for s in self.samples if s.caption)
        return list(self.config.sample_prompts) or list(captions)[:2] or [""]

    @property
    def sampling(self) -> Sampling:
        c = self.config
        width, height = c.effective_sample_size
        return Sampling(c.sample_steps, c.sample_cfg, c.sample_negative, (width, height))

    def preview(self) -> None:
        """Draws every preview prompt into samples/ and TensorBoard. Leaves the random state as it was."""
        self._mode(training=False)
        for number, prompt in enumerate(self.prompts, 1):
            image = self.family.generate(prompt, self.config.seed + number - 1, self.sampling)
            io.save_png(self.folder.sample(self.state.step, number), image)
            self.board.picture(self.state.step, f"preview/{number}", image)
        self.family.rest(text_encoder=self.feed.cache_text)
        self._mode(training=True)

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


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    packages = ("torch", "diffusers", "transformers", "safetensors", "pillow", "peft")
    return {"lora-scripts": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
