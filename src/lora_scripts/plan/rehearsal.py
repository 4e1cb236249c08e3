"""A run in small, to be measured: a few steps of its largest batch, one preview, one save, one held-out loss."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
from lora_scripts.compute.meter import Meter, free_ram, peak_ram, used_ram
from lora_scripts.compute.profile import Watch
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.data.scan import Sample
from lora_scripts.events import Event, Progress, Stepped, ignore
from lora_scripts.families.base import CaptionEncoder
from lora_scripts.formats import io
from lora_scripts.plan.forecast import cache_size
from lora_scripts.plan.measured import Kind, Measured, Views
from lora_scripts.report.data import THUMBNAIL, THUMBNAILS
from lora_scripts.run import story
from lora_scripts.run.after.finish import drawn_in_all
from lora_scripts.run.build import build_model
from lora_scripts.run.captions_first import captions_first
from lora_scripts.run.dataset import class_samples, step_cost
from lora_scripts.run.heldout import share
from lora_scripts.run.init_lora import read_initial
from lora_scripts.run.overview import table_rows
from lora_scripts.run.parts import Model, Parts
from lora_scripts.run.preflight import Split
from lora_scripts.run.previews import Preview, previews_of
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.run.stepping import measuring_of
from lora_scripts.train.average import averaged
from lora_scripts.train.encoded import KEPT
from lora_scripts.train.feed import Feed
from lora_scripts.train.planned import Picture
from lora_scripts.train.progress import Board

MOST = 8
"""Steps that are timed, after one that warms up."""
ENOUGH = 4.0
"""Seconds of timed steps after which no more are needed."""
SLOW = 3.0
"""Seconds from which warming up is no part of what is done for the first time: it counts, and less of it is done."""
DRAWN, DRAWN_SLOWLY = 5, 2
"""Steps of the preview that is timed; the others take as long."""
ENCODED = 4
"""Pictures that are encoded; a larger batch has them several times."""
ACCUMULATED = 2
"""Batches in a step at most: from the second on, the gradients of the ones before are there."""


class Rehearsal:
    """Measures the run of a config, all of it as it is, except that it is cut short and writes into `scratch`."""

    def __init__(
        self, config: TrainConfig, samples: Split, scratch: Path, memory: int, tell: Callable[[Measured], None]
    ) -> None:
        """`memory`: bytes that a card shall seem to have; 0: those that it has."""
        self.samples, self.memory, self.tell = samples, memory, tell
        self.folder = RunFolder(scratch / config.name, config.name)  # nothing touches the real one,
        self.config = config.model_copy(update={"cache_dir": None})  # nor the real cache
        self.measured = Measured()

    def run(self, *, profile: bool = False) -> None:
        """Measures everything, and if asked where a step goes. UserError for a person's mistake, and what torch raises
        when memory runs out."""
        m, config = self.measured, self.config
        self.folder.path.mkdir()
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
        m.device, m.precision = str(device), precision
        self.meter = Meter(device)
        if self.memory:
            self.meter.limit_to(self.memory)
        m.there = self.meter.there()
        m.free_ram = free_ram() + used_ram() if device.type != "cpu" else 0
        self._enter("load")
        begun = time.perf_counter()
        initial = read_initial(config)
        model = build_model(config, device, precision, initial, self._first())
        m.seconds["load"] = time.perf_counter() - begun
        with model.off():
            of_class = self._class_pictures(model)
        whole = story.assemble(config, self.folder, self.samples, of_class, model, device=device, precision=precision)
        self.leave()
        self._survey(whole)
        # The largest last: memory that other shapes have left in pieces counts, too.
        kinds = {"smallest": m.kinds[-1], "largest": m.kinds[0]}
        if kinds["smallest"] == kinds["largest"]:
            del kinds["smallest"]
        feeds = self._encode(whole, kinds)
        self._draw(whole)
        steps, longest = 0, config.model_copy(update={"preserve_every": 1})  # as `_cut` has them
        for name, feed in feeds.items():
            # A step after another has all that a run holds, moments included: a slow one need not be the third.
            seconds = self._some_steps(short(whole, feed), several=len(feeds) > 1)
            steps = whole.state.step
            mean = sum(seconds) / len(seconds) / m.accumulation
            m.seconds[name] = mean * step_cost(config) / step_cost(longest)
        if whole.held.on:
            self._measure(whole, feeds["largest"])
        if profile:
            self._profile(short(whole, feeds["largest"]))
        self._weigh(steps, whole.device)
        m.ram = peak_ram() if device.type != "cpu" else 0
        self._enter("done")

    def _first(self) -> Callable[[CaptionEncoder], None]:
        """Of a text encoder that comes before the model: a few captions, measured."""
        m, written, timed, last = self.measured, list[int](), list[float](), time.perf_counter()

        def write(path: Path, data: bytes) -> None:
            io.write_atomic(path, data)
            written.append(len(data))

        def tell(event: Event) -> None:
            nonlocal last
            if isinstance(event, Progress):
                now = time.perf_counter()
                timed.append(now - last)
                last = now
                m.seconds["caption"], m.sizes["caption"] = _mean(timed), written[-1]

        few = Split(self.samples.trained[:ENCODED], [])
        return captions_first(self.config, self.folder.path, few, tell, write)

    def _enter(self, phase: str) -> None:
        self.measured.at = phase
        self.tell(self.measured)
        self.meter.restart()

    def leave(self) -> None:
        """Notes the peak of the phase under way."""
        peaks, at = self.measured.peaks, self.measured.at
        peaks[at] = max(peaks.get(at, 0), self.meter.peak())

    # --- what is there -----------------------------------------------------------------------------------------------

    def _survey(self, whole: Parts) -> None:
        """What the whole run has to do."""
        m, feed, held, config = self.measured, whole.feed, whole.held, whole.config
        previews = previews_of(config, whole.samples)
        m.steps, m.prompts, m.best = whole.state.total, len(previews), held.on and bool(held.samples)
        m.measuring = share(held, config, whole.state.total)
        every = config.preview_steps(feed.steps_per_epoch)
        m.previews = (whole.state.total - 1) // every if every else 0
        m.shown = drawn_in_all(config, previews, whole.samples, held)
        output = RunFolder(config.output_dir, config.name).final
        m.rows = table_rows(
            config, whole.model, feed, held, steps=whole.state.total, done=0, precision=whole.precision, output=output
        )
        batches = feed.batches(0)  # every epoch has the same, in another order
        counts = Counter(
            (*feed.pictures[batch[0]].bucket, len(batch), _beside(feed.pictures[batch[0]])) for batch in batches
        )
        kinds = (Kind(w, h, images, count, beside) for (w, h, images, beside), count in counts.items())
        m.kinds = sorted(kinds, key=lambda k: k.pixels, reverse=True)
        m.accumulation = min(config.gradient_accumulation, ACCUMULATED, len(batches))
        # The cache knows equal pictures by their content, and keeps one.
        own = [*feed.pictures, *(held.feed.pictures if held.on else [])]
        pictures_of_all = [one for picture in own for one in (picture, *picture.references)]
        views = {(p.sample.digest, view) for p in pictures_of_all for view in p.views}
        encoded = Counter(view.bucket for _, view in views)
        pictures = Counter(bucket for _, bucket in {(digest, view.bucket) for digest, view in views})
        m.views = [Views(*bucket, count, encoded[bucket]) for bucket, count in sorted(pictures.items())]
        m.thumbnails = sum(
            round(s.width * s.height * min(1, THUMBNAIL / max(s.width, s.height)) ** 2)
            for s in whole.samples[:THUMBNAILS]
        )
        m.captions = len({*feed.encoded.asked, *(held.feed.encoded.asked if held.on else [])})

    def _class_pictures(self, model: Model) -> list[Sample]:
        """Of those that would be drawn one is drawn, and stands for all."""
        c, m, family = self.config, self.measured, model.family
        samples = class_samples(c.model_copy(update={"class_images": 0}), family, self.folder.path, ignore)
        m.drawn = max(0, c.class_images - len(samples))
        if m.drawn:
            begun, folder = time.perf_counter(), self.folder.path / "class_images"
            one = c.model_copy(update={"class_data_dir": None, "class_images": 1})
            (sample,) = class_samples(one, family, folder, ignore)
            m.seconds["class picture"] = time.perf_counter() - begun
            m.sizes["class picture"] = sample.path.stat().st_size
            samples += [_copy(sample, n) for n in range(m.drawn)]
        return samples

    def _cut(self, whole: Feed, kind: Kind, most: int) -> Feed:
        """A feed whose every batch is of this kind, of so many pictures at most."""
        size = (kind.width, kind.height)
        alike: list[Picture] = [p for p in whole.pictures if p.bucket == size and _beside(p) == kind.beside]
        pictures = [p for p in alike if p.shape == alike[0].shape]
        pictures = [replace(p, views=p.views[:2]) for p in pictures[: min(kind.images, most)]]
        accumulation = self.measured.accumulation
        settings = replace(
            whole.settings,
            batch_size=kind.images,
            accumulation=accumulation,
            repeats=kind.images * accumulation,  # so that pictures x repeats fill batches and steps without a rest
            preserve_every=1,
        )
        return Feed(whole.family, pictures, settings, cache_text=whole.cache_text)

    # --- doing it ----------------------------------------------------------------------------------------------------

    def _encode(self, whole: Parts, kinds: Mapping[str, Kind]) -> dict[str, Feed]:
        """Feeds of the smallest and the largest batch, filled; the pictures of the largest are timed."""
        m = self.measured
        self._enter("encode")
        written: list[int] = []
        timed: dict[str, list[float]] = {"pictures": [], "captions": []}
        last, before = time.perf_counter(), 0

        def write(path: Path, data: bytes) -> None:
            io.write_atomic(path, data)
            written.append(len(data))

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last, before
            now = time.perf_counter()
            if len(written) > before:  # else it was there
                timed[what].append(now - last)
                name = {"pictures": "latents", "captions": "caption"}[what]
                m.sizes.setdefault(name, sum(written[before:]))  # a picture's with its mask
            last, before = now, len(written)

        cache = Cache(self.folder.path / "cache", write, KEPT)
        feed = self._cut(whole.feed, kinds["largest"], 1)
        feed.fill(cache, tell)
        most = ENCODED if timed["pictures"][0] < SLOW else 1
        feeds = {name: self._cut(whole.feed, kind, most) for name, kind in kinds.items()}
        if len(feeds["largest"].pictures) > 1:
            feed = feeds["largest"]
            feed.fill(cache, tell)
        feeds["largest"] = feed
        if "smallest" in feeds:
            feeds["smallest"].fill(cache, lambda what, done, total: None)
        whole.model.family.rest(text_encoder=feed.cache_text)
        self.leave()
        # The first of each also warms up, and makes the fingerprint of its encoder.
        views = len(feed.pictures[0].views)
        m.seconds["picture"] = _mean(timed["pictures"][::views])
        m.seconds["view"] = _mean(timed["pictures"][1::2]) if views > 1 else 0.0
        if timed["captions"]:
            m.seconds.setdefault("caption", _mean(timed["captions"]))
        m.resident = self.meter.used()
        return feeds

    def _some_steps(self, parts: Parts, *, several: bool) -> list[float]:
        """Seconds of the timed ones, and of a save after them. `several`: there are steps of another kind, too."""
        timed: list[float] = []

        def sink(event: Event) -> None:
            if isinstance(event, Stepped):
                self.leave()
                timed.append(event.seconds)
                self._enter("step")

        warming = 2 if parts.device.type == "cuda" else 1  # a card records a step when it takes the second of a kind

        def counted() -> list[float]:
            return timed if several and timed and timed[0] >= SLOW else timed[warming:]

        def enough() -> bool:
            return sum(counted()) >= ENOUGH or len(counted()) >= MOST

        self._enter("step")
        board = Board(self.folder.logs, parts.state.step, ignore)
        saver = story.PictureSaver(parts, sink)

        def save() -> None:
            self._enter("save")
            begun = time.perf_counter()
            saver.save()
            self.measured.seconds["save"] = time.perf_counter() - begun
            self.leave()

        try:
            measuring = measuring_of(parts, board, sink)
            story.train_steps(parts, measuring, saver, board, lambda: int(enough()), sink, save)
        finally:
            board.close()
        return counted()

    def _profile(self, parts: Parts) -> None:
        """Of a step of the largest batch, launched kernel by kernel: one that is played has no parts to look at."""
        parts = replace(parts, config=parts.config.model_copy(update={"cuda_graphs": "off"}))
        self._enter("step")
        watch = Watch(parts.device, DTYPES[parts.precision])

        def sink(event: Event) -> None:
            if isinstance(event, Stepped):
                watch.ended(event.seconds)

        board = Board(self.folder.logs, parts.state.step, ignore)
        try:
            saver, measuring = story.PictureSaver(parts, ignore), measuring_of(parts, board, ignore)
            story.train_steps(parts, measuring, saver, board, lambda: int(watch.done), sink, lambda: None)
        finally:
            board.close()
        self.measured.profile = asdict(watch.told())

    def _draw(self, parts: Parts) -> None:
        """Before the steps: what they leave unused, but not given back, would count as the preview's."""
        self._enter("preview")
        board = Board(self.folder.logs, parts.state.step, ignore)

        def seconds(preview: Preview, steps: int) -> float:
            begun, few = time.perf_counter(), replace(preview, sampling=replace(preview.sampling, steps=steps))
            # One for which the memory is too small must end the rehearsal.
            story.show(parts, [few], story.PictureSaver(parts, ignore), board, ignore, strict=True)
            return time.perf_counter() - begun

        one = previews_of(self.config, parts.samples)[0]
        steps, whole = one.sampling.steps, seconds(one, 1)  # it warms up
        if steps > 1:
            slow = whole >= SLOW
            first, some = whole if slow else seconds(one, 1), min(steps, DRAWN_SLOWLY if slow else DRAWN)
            each = max(0.0, seconds(one, some) - first) / (some - 1)
            whole = first + each * (steps - 1)
        self.measured.seconds["preview"] = whole
        board.close()
        self.leave()

    def _measure(self, parts: Parts, feed: Feed) -> None:
        """A held-out loss, of as many latents at a time as the run takes."""
        self._enter("measure")
        probe, model = parts.held.inside, parts.model
        levels = replace(probe.levels, strata=probe.batch)  # one picture so many times
        model.train(False)
        with averaged(model.trained, model.optimizer, parts.ema):
            replace(probe, feed=feed, indices=[0], levels=levels, parts=None).losses()
        model.train(True)
        self.leave()

    def _weigh(self, step: int, device: torch.device) -> None:
        """What was written."""
        m, sizes = self.measured, self.measured.sizes
        sizes["lora"] = self.folder.checkpoint(step).stat().st_size
        sizes["state"] = sum(f.stat().st_size for f in self.folder.state(step).iterdir())
        sizes["picture"] = next(self.folder.samples.glob("*.png")).stat().st_size
        logs = sum(f.stat().st_size for f in self.folder.logs.rglob("*") if f.is_file())
        sizes["scalars"] = max(0, logs - 2 * sizes["picture"]) // step
        kept = sizes["kept"] = min(cache_size(m), KEPT)  # here is only a little of it
        if device.type == "cpu":
            m.resident += kept
            m.peaks |= {phase: peak + kept for phase, peak in m.peaks.items() if phase not in ("load", "encode")}


def short(whole: Parts, feed: Feed) -> Parts:
    """The run with a feed of its own that ends only when we end it, saves then, and measures and shows nothing."""
    endless = 1_000_000
    keys = {"save_steps": endless, "sample_every": 0, "sample_every_epochs": None, "on_oom": "stop"}
    whole.state.total = endless
    config = whole.config.model_copy(update=keys)
    return replace(whole, config=config, feed=feed, held=replace(whole.held, every=0))


def _beside(picture: Picture) -> int:
    """Pixels of what it is made from."""
    return sum(one.bucket[0] * one.bucket[1] for one in picture.references)


def _copy(sample: Sample, number: int) -> Sample:
    """The picture as one that the cache takes for another: behind its end stands a number, which no decoder reads. No
    more are encoded, so no more are written, than the first ones."""
    path, data = sample.path.with_name(f"copy-{number}.png"), sample.path.read_bytes() + b"%d" % number
    if number < ENCODED:
        io.write_atomic(path, data)
    return replace(sample, path=path, name=f"{number}", digest=hashlib.sha256(data).hexdigest())


def _mean(values: list[float]) -> float:
    """Without the first, if there are more."""
    used = values[1:] or values
    return sum(used) / len(used)
