"""A run in small, to be measured: a few steps of its largest batch, one preview, one save, one held-out loss."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lora_scripts.compute.device import choose_device, choose_precision
from lora_scripts.compute.meter import Meter, free_ram, peak_ram, used_ram
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.data.scan import Sample
from lora_scripts.formats import io
from lora_scripts.loras import file as loras
from lora_scripts.plan.forecast import Kind, Measured, Views, cache_size
from lora_scripts.run.folder import RunFolder
from lora_scripts.run.memorisation import captions
from lora_scripts.run.previews import Preview, draw_previews
from lora_scripts.run.prior import class_samples
from lora_scripts.run.story import Run
from lora_scripts.run.table import plan_rows
from lora_scripts.train.feed import Feed, Picture
from lora_scripts.train.loop import StepFacts
from lora_scripts.train.progress import Board

LEAST, MOST = 2, 8
"""Steps that are timed, after one that warms up."""
ENOUGH = 4.0
"""Seconds of timed steps after which no more than the least are needed."""
ENCODED = 4
"""Pictures that are encoded; a larger batch has them several times."""
ACCUMULATED = 2
"""Batches in a step at most: from the second on, the gradients of the ones before are there."""


class Rehearsal(Run):
    """The run of a config, all of it as it is, except that it is cut short and writes into `scratch`."""

    def __init__(
        self, config: TrainConfig, samples: list[Sample], scratch: Path, memory: int, tell: Callable[[Measured], None]
    ) -> None:
        """`memory`: bytes that a card shall seem to have; 0: those that it has."""
        # Nothing touches the real folder.
        super().__init__(config, RunFolder(scratch / config.name, config.name), samples, resume=False)
        self.memory, self.tell = memory, tell
        self.measured = Measured()
        self.timed: list[float] = []

    def start(self) -> None:
        """Measures everything. UserError for a person's mistake, and what torch raises when memory runs out."""
        m, config = self.measured, self.config
        self.folder.path.mkdir()
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        m.device, m.precision = str(self.device), self.precision
        self.meter = Meter(self.device)
        if self.memory:
            self.meter.limit_to(self.memory)
        m.there = self.meter.there()
        m.free_ram = free_ram() + used_ram() if self.device.type != "cpu" else 0
        self._enter("load")
        begun = time.perf_counter()
        self._load(loras.read(config.init_lora).weights if config.init_lora else {})
        m.seconds["load"] = time.perf_counter() - begun
        self._plan()
        self.leave()
        self._survey()
        # From here on the loop saves when we end it, and measures nothing of its own.
        self.config = config.model_copy(
            update={"save_steps": 1_000_000, "sample_every": 0, "sample_every_epochs": None}
        )
        measures = self.held.on
        self.held.silence()
        self.total = self.state.total = 1_000_000
        # The largest last: memory that other shapes have left in pieces counts, too.
        kinds = {"smallest": m.kinds[-1], "largest": m.kinds[0]}
        feeds = {name: self._cut(kind) for name, kind in kinds.items() if name == "largest" or kind != m.kinds[0]}
        self._encode(feeds["largest"], feeds.get("smallest"))
        self._draw()
        for name, feed in feeds.items():
            steps = self._some_steps(feed)
            m.seconds[name] = sum(steps) / len(steps) / m.accumulation
        if measures:
            self._measure()
        self._weigh()
        m.ram = peak_ram() if self.device.type != "cpu" else 0
        self._enter("done")

    def _enter(self, phase: str) -> None:
        self.measured.at = phase
        self.tell(self.measured)
        self.meter.restart()

    def leave(self) -> None:
        """Notes the peak of the phase under way."""
        peaks, at = self.measured.peaks, self.measured.at
        peaks[at] = max(peaks.get(at, 0), self.meter.peak())

    # --- what is there -----------------------------------------------------------------------------------------------

    def _survey(self) -> None:
        """What the whole run has to do."""
        m, feed, held, prompts = self.measured, self.feed, self.held, [p.prompt for p in super().previews]
        m.steps, m.prompts, m.best, m.measuring = self.total, len(prompts), held.on and bool(held.held), held.share()
        # Of the report: one prompt at four strengths, the others without and with the LoRA, and what it looks up.
        m.shown = 2 + 2 * len(prompts[:4]) + len(captions(self, prompts[:4]))
        scratch, self.folder = self.folder, RunFolder(self.config.output_dir, self.config.name)
        m.rows, self.folder = plan_rows(self), scratch
        batches = feed.batches(0)  # every epoch has the same, in another order
        counts = Counter((*feed.pictures[batch[0]].bucket, len(batch)) for batch in batches)
        m.kinds = sorted((Kind(*shape, count) for shape, count in counts.items()), key=lambda k: k.pixels, reverse=True)
        m.accumulation = min(self.config.gradient_accumulation, ACCUMULATED, len(batches))
        # The cache knows equal pictures by their content, and keeps one.
        pictures_of_all = [*feed.pictures, *(held.feed.pictures if held.on else [])]
        views = {(p.sample.digest, view) for p in pictures_of_all for view in p.views}
        encoded = Counter(view.bucket for _, view in views)
        pictures = Counter(bucket for _, bucket in {(digest, view.bucket) for digest, view in views})
        m.views = [Views(*bucket, count, encoded[bucket]) for bucket, count in sorted(pictures.items())]
        m.thumbnails = sum(
            round(s.width * s.height * min(1, 256 / max(s.width, s.height)) ** 2) for s in self.samples[:12]
        )
        m.captions = len({p.sample.caption for p in pictures_of_all} | {""}) if feed.cache_text else 0

    def _class_pictures(self) -> list[Sample]:
        """Of those that would be drawn one is drawn, and stands for all."""
        c, m = self.config, self.measured
        found = class_samples(c.model_copy(update={"class_images": 0}), self.family, self.folder.path, lambda *_: None)
        m.drawn = max(0, c.class_images - len(found))
        if m.drawn:
            begun, folder = time.perf_counter(), self.folder.path / "class_images"
            one = c.model_copy(update={"class_data_dir": None, "class_images": 1})
            (sample,) = class_samples(one, self.family, folder, lambda *_: None)
            m.seconds["class picture"] = time.perf_counter() - begun
            m.sizes["class picture"] = sample.path.stat().st_size
            found += [replace(sample, name=f"{n}", digest=f"{n}/{sample.digest}") for n in range(m.drawn)]
        return found

    def _cut(self, kind: Kind) -> Feed:
        """A feed whose every batch is of this kind."""
        pictures: list[Picture] = [p for p in self.feed.pictures if p.bucket == (kind.width, kind.height)]
        pictures = [replace(p, views=p.views[:2]) for p in pictures[: min(kind.images, ENCODED)]]
        accumulation = self.measured.accumulation
        settings = replace(
            self.feed.settings,
            batch_size=kind.images,
            accumulation=accumulation,
            repeats=kind.images * accumulation,  # so that pictures x repeats fill batches and steps without a rest
        )
        return Feed(self.family, pictures, settings, cache_text=self.feed.cache_text)

    # --- doing it ----------------------------------------------------------------------------------------------------

    def _encode(self, feed: Feed, other: Feed | None) -> None:
        """Fills both, and measures the first."""
        m = self.measured
        self._enter("encode")
        written: list[int] = []
        timed: dict[str, list[float]] = {"pictures": [], "captions": []}
        last = time.perf_counter()

        def write(path: Path, data: bytes) -> None:
            io.write_atomic(path, data)
            written.append(len(data))

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            timed[what].append(now - last)
            last = now
            m.sizes.setdefault({"pictures": "latents", "captions": "caption"}[what], written[-1])

        cache = Cache(self.folder.path / "cache", write)
        feed.fill(cache, tell)
        if other is not None:
            other.fill(cache, lambda what, done, total: None)
        self.family.rest(text_encoder=self.feed.cache_text)
        self.leave()
        # The first of each also warms up, and makes the fingerprint of its encoder.
        views = len(feed.pictures[0].views)
        m.seconds["picture"] = _mean(timed["pictures"][::views])
        m.seconds["view"] = _mean(timed["pictures"][1::2]) if views > 1 else 0.0
        if timed["captions"]:
            m.seconds["caption"] = _mean(timed["captions"])
        m.resident = self.meter.used()

    def _some_steps(self, feed: Feed) -> list[float]:
        """Seconds of the timed ones."""
        self.feed, self.interrupted, self.timed = feed, False, []
        self._enter("step")
        self._train()
        return self.timed[1:]

    def _told(self, facts: StepFacts) -> None:
        super()._told(facts)
        self.leave()
        self.timed.append(facts.seconds)
        after = self.timed[1:]
        self.interrupted = len(after) >= LEAST and (sum(after) >= ENOUGH or len(after) >= MOST)
        self._enter("step")

    def _save(self) -> None:
        self._enter("save")
        begun = time.perf_counter()
        super()._save()
        self.measured.seconds["save"] = time.perf_counter() - begun
        self.leave()

    @property
    def previews(self) -> list[Preview]:
        """One is enough."""
        return super().previews[:1]

    def preview(self) -> None:
        """One for which the memory is too small must end the rehearsal."""
        draw_previews(self, strict=True)

    def _draw(self) -> None:
        """Before the steps: what they leave unused, but not given back, would count as the preview's."""
        self._enter("preview")
        self.board = Board(self.folder.logs, self.state.step)
        whole = self.config
        for self.config in (whole.model_copy(update={"sample_steps": 1}), whole):  # the first warms up
            begun = time.perf_counter()
            self.preview()
            self.measured.seconds["preview"] = time.perf_counter() - begun
        self.board.close()
        self.leave()

    def _measure(self) -> None:
        """A held-out loss, of as many latents at a time as the run takes."""
        self._enter("measure")
        probe, known = self.held.inside, len(self.feed.pictures)
        indices = [n % known for n in range(-(-probe.batch // probe.levels.strata))]
        self.model.train(False)
        with self.averaged():
            replace(probe, feed=self.feed, indices=indices).losses()
        self.model.train(True)
        self.leave()

    def _weigh(self) -> None:
        """What was written."""
        m, sizes, step = self.measured, self.measured.sizes, self.state.step
        sizes["lora"] = self.folder.checkpoint(step).stat().st_size
        sizes["state"] = sum(f.stat().st_size for f in self.folder.state(step).iterdir())
        sizes["picture"] = next(self.folder.samples.glob("*.png")).stat().st_size
        logs = sum(f.stat().st_size for f in self.folder.logs.rglob("*") if f.is_file())
        sizes["scalars"] = max(0, logs - 2 * sizes["picture"]) // step
        if (
            self.device.type == "cpu"
        ):  # while it trains, the run keeps all that is encoded in RAM; here is only a little
            m.resident += cache_size(m)
            m.peaks |= {
                phase: peak + cache_size(m) for phase, peak in m.peaks.items() if phase not in ("load", "encode")
            }


def _mean(values: list[float]) -> float:
    """Without the first, if there are more."""
    used = values[1:] or values
    return sum(used) / len(used)
