"""The story of one training run: from a config to a proved LoRA file and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image

from lora_scripts.compute.compiled import told_in_a_line
from lora_scripts.compute.device import choose_device, choose_precision
from lora_scripts.compute.mapped import Leases
from lora_scripts.compute.pages import give_back
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.data.scan import Sample
from lora_scripts.data.trigger import calling
from lora_scripts.events import Note, Progress, Saved, Sink, Table
from lora_scripts.families.base import Batch
from lora_scripts.formats import io
from lora_scripts.formats.gguf import packed_types
from lora_scripts.formats.hashes import with_hashes
from lora_scripts.generate.command import save as save_picture
from lora_scripts.loras.words import embedding_file
from lora_scripts.report.data import UNMEASURED
from lora_scripts.run import export, stepping
from lora_scripts.run.after.finish import look, report, report_pictures, reported, save_last_previews, save_strength
from lora_scripts.run.after.worn import wear
from lora_scripts.run.base_files import BaseFiles
from lora_scripts.run.build import build_model, check_tiles, objective_of, passes_of, rates_of
from lora_scripts.run.captions_first import captions_first
from lora_scripts.run.configs import cache_of, dump_config
from lora_scripts.run.dataset import build_feed, class_samples
from lora_scripts.run.export import LoraTensors, Snapshot, prove
from lora_scripts.run.heldout import Measuring, as_before, build_held_out, levels_of
from lora_scripts.run.init_lora import read_initial
from lora_scripts.run.overview import afterwards, settled, table_rows
from lora_scripts.run.parts import Model, Parts
from lora_scripts.run.pivotal import set_stop
from lora_scripts.run.preflight import Split
from lora_scripts.run.previews import Preview, draw_previews, infotext, previews_of, though_finished
from lora_scripts.run.resume import base_digests, new_state, restore
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.run.shortage import ELSEWHERE, enough_memory, rescuing, smaller_words
from lora_scripts.run.stepping import Saver, measuring_of
from lora_scripts.run.stopping import SAVED, ended_by, signals, stoppable
from lora_scripts.train.average import Ema
from lora_scripts.train.encoded import KEPT
from lora_scripts.train.passes import Ready
from lora_scripts.train.progress import Board, Smoothed


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves."""

    name: str
    """Of the LoRA, as prompts call it."""
    lora: Path
    proof: str
    """What was found when the file was read again, in lines."""
    report: Path
    steps: int
    loss: float
    """Smoothed, of the last steps."""
    best: Path | None
    """The LoRA of the lowest held-out loss; None where nothing was held out, or the base is better."""
    warning: str
    """Why it is better not to use the LoRA; empty for a healthy one."""
    trigger: str
    """The word that calls it in a prompt; empty if none is known."""
    words: dict[str, Path]
    """New words -> their embedding files."""
    strength: float = UNMEASURED
    """At which it is best worn, as far as measured."""
    look_at: str = ""
    """Training pictures that somebody should look at; empty for none."""


def train(
    config: TrainConfig, folder: RunFolder, samples: Split, *, resume: bool, sink: Sink, again: str = "--resume"
) -> TrainResult:
    """Prepares, trains, exports, proves and reports. UserError for a person's mistake; KeyboardInterrupt when it was
    stopped, everything saved. `again`: how the person goes on then."""
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    initial = read_initial(config)
    with folder.locked(), signals(sink, resume=resume, again=again) as stopped, Leases() as leases:
        sink = stoppable(sink, stopped)
        cached = cache_of(config, folder.path)
        found = folder.check(resume=resume)  # again: an interrupted save has been put right
        less = "" if packed_types(config.base_model) else ", or write base_precision: int8"
        with enough_memory("loading the base", f"{ELSEWHERE}{less}"):
            first = captions_first(config, folder.path, samples, sink)
            model = build_model(config, device, precision, initial, first, cached)
        model.files.lend(leases, sink)
        with model.off(), enough_memory("drawing class pictures", "write a smaller resolution"):
            drawn_from = list(base_digests(config, model).values()) if config.class_images else []
            of_class = class_samples(config, model.family, folder.path / "class_images", sink, drawn_from)
        parts = assemble(config, folder, samples, of_class, model, device=device, precision=precision)
        if found is not None:
            restore(parts.state, found, model, parts.ema, parts.scaler, parts.rates, sink, folder=folder)
            parts = replace(parts, held=as_before(parts.held, parts.state))
        sink(Table("", tuple(rows_of(parts))))
        io.write_text(folder.path / "config.yaml", dump_config(config))
        if samples.seen is not None:
            io.make_folder(cached)
            samples.seen.save(io.write_text)
        cache = Cache(cached, write_of(model.files), KEPT)
        for inside in sorted(cache.folder.glob("[0-9a-f][0-9a-f]")):
            io.remove_stale_temps(inside)  # of runs that were killed
        with enough_memory("encoding pictures", "write vae_tiling: true, or a smaller resolution"):
            encode(parts, cache, sink)
        give_back(model.files.digests)  # of the whole file only the VAE is still mapped, and the caches stand for it
        saver = PictureSaver(parts, sink)
        saver.complete()
        board = Board(folder.logs, parts.state.step, sink)
        try:
            measuring = measuring_of(parts, board, sink)
            with rescuing(saver.save, lambda: saver.saved, parts.state, model.optimizer, parts.scaler, config):
                stopped.begin("steps")
                done = train_steps(parts, measuring, saver, board, stopped, sink)
            if not done:
                raise ended_by(stopped(), SAVED.format(step=parts.state.step, again=again))
            stopped.begin("report")
            hint = f"go on with --resume and a smaller sample_size; {folder.final} is written"
            with enough_memory("drawing the report", hint):
                return finish(parts, measuring, saver, board, sink)
        finally:
            board.close()


# --- preparing --------------------------------------------------------------------------------------------------------


def assemble(
    config: TrainConfig,
    folder: RunFolder,
    samples: Split,
    of_class: list[Sample],
    model: Model,
    *,
    device: torch.device,
    precision: str,
) -> Parts:
    """Everything that a run is made of, before its first step."""
    c = config
    feed = build_feed(c, model.family, samples.trained, of_class)
    check_tiles(c, [p.bucket for p in feed.pictures])
    total = feed.steps_per_epoch * c.epochs
    set_stop(model.optimizer, c.token_stop, total)
    held = build_held_out(c, model, feed, samples.held_out, total)
    own = [p.sample for p in feed.pictures if not p.of_class]
    filled, held = settled(c, feed, held, own, total)
    masks = feed.settings.masks.digests if feed.settings.masks else {}
    state = new_state(c, model, [p.sample for p in feed.pictures], samples.held_out, masks, total, precision)
    state.levels = list(levels_of(held))
    return Parts(
        config=filled,
        folder=folder,
        samples=samples.trained,
        device=device,
        precision=precision,
        model=model,
        feed=feed,
        held=held,
        rates=rates_of(c),
        ema=Ema(model.weights(), c.ema_decay) if c.ema_decay else None,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        state=state,
    )


def rows_of(parts: Parts) -> list[tuple[str, str]]:
    """The table of a run."""
    steps, done = parts.state.total, parts.state.step
    rows = table_rows(
        parts.config,
        parts.model,
        parts.feed,
        parts.held,
        steps=steps,
        done=done,
        precision=parts.precision,
        output=parts.folder.final,
    )
    return [*rows, ("memory ran out", smaller_words(parts.state))] if parts.state.smaller else rows


def encode(parts: Parts, cache: Cache, sink: Sink) -> None:
    """Latents and captions, from the cache or into it; then what encodes them leaves the card."""

    def progress(what: str, done: int, total: int) -> None:
        sink(Progress(what, done, total))

    parts.feed.fill(cache, progress)
    if parts.held.on and parts.held.samples:
        parts.held.feed.fill(cache, progress)
    if told := parts.model.family.told_of_latents():
        sink(Note(told))
    parts.model.family.rest(text_encoder=parts.feed.cache_text)


def write_of(files: BaseFiles) -> Callable[[Path, bytes], None]:
    """Writes what was encoded; not after somebody wrote into the VAE, under whose digest it would be kept."""

    def write(path: Path, data: bytes) -> None:
        files.require_unchanged(samples=False)
        io.write_atomic(path, data)

    return write


# --- training ---------------------------------------------------------------------------------------------------------


class PictureSaver(Saver):
    """What stands in a file of a step is taken from the weights once for that step."""

    def __init__(self, parts: Parts, sink: Sink) -> None:
        super().__init__(parts, sink)
        self.parts = parts
        self._taken: tuple[int, Snapshot, LoraTensors] | None = None

    def taken(self) -> tuple[Snapshot, LoraTensors]:
        """What is learnt now. UserError if a value is not finite in the file's precision."""
        p = self.parts
        if self._taken is None or self._taken[0] != p.state.step:
            taken = export.snapshot(p.model, p.ema)
            self._taken = p.state.step, taken, export.to_file(taken, p.model, p.config)
        return self._taken[1:]

    def autov3(self) -> str:
        """The short hash of the file that `write` would write; "" where the base is still as it was."""
        if self.parts.state.step == 0 and self.parts.config.init_lora is None:
            return ""
        return with_hashes(self.taken()[1].tensors, {})["sshs_model_hash"][:12]

    def write(self, path: Path, what: str) -> None:
        """The LoRA as it is now."""
        p, (taken, file) = self.parts, self.taken()
        per_epoch = p.feed.steps_per_epoch
        own = [i for i, picture in enumerate(p.feed.pictures) if not picture.of_class]
        facts = export.facts_of(
            p.config,
            p.model,
            file,
            p.state,
            samples=p.samples,
            sizes=[p.feed.pictures[i].bucket for i in own],
            times=[p.feed.times[i] for i in own],
            steps_per_epoch=per_epoch,
            precision=p.precision,
        )
        export.write(path, file, taken, facts)
        self.sink(Saved(what, path, p.state.step))


def train_steps(
    parts: Parts,
    measuring: Measuring,
    saver: PictureSaver,
    board: Board,
    stopped: Callable[[], int],
    sink: Sink,
    save: Callable[[], None] | None = None,
) -> bool:
    """All steps from where the state stands; False if it was stopped before the last. `save`: in place of `saver`'s."""
    c, model = parts.config, parts.model
    go = passes_of(c, model, objective_of(c, model.family.objective), parts.scaler, cached=parts.feed.cache_text)
    previews = previews_of(c, parts.samples)

    def preview() -> None:
        go.release()  # drawing needs the room
        show(parts, previews, saver, board, sink)

    def ahead(first: int, total: int, most: int | None) -> Iterator[tuple[int, list[Batch | Ready]]]:
        return go.ahead(parts.feed.steps(first, total, most))

    told = stepping.telling(parts, board, sink, "images")
    try:
        with told_in_a_line() if c.compile else nullcontext():
            return stepping.train_steps(
                parts,
                go,
                ahead,
                measuring,
                saver,
                told=told,
                preview=preview,
                previews=len(previews),
                stopped=stopped,
                sink=sink,
                save=save,
            )
    finally:
        if go.fault:
            sink(Note(f"note: steps were not recorded, but launched one kernel at a time: {go.fault}"))
        go.release()


def show(
    parts: Parts, previews: list[Preview], saver: PictureSaver, board: Board, sink: Sink, *, strict: bool = False
) -> None:
    """Draws every preview with what a file would hold now, into samples/ and TensorBoard."""
    step, family = parts.state.step, parts.model.family
    taken, file = saver.taken()
    autov3 = saver.autov3()

    def done(number: int, preview: Preview, picture: Image) -> None:
        path = parts.folder.sample(step, number)
        save_picture(path, picture, infotext(parts.config, parts.model, preview, autov3))
        board.picture(step, f"preview/{number}", picture, preview.prompt)
        sink(Saved("preview", path, step))

    try:
        draw_previews(parts.model, previews, file, taken, done, sink, step=step, strict=strict)
    finally:
        family.rest(text_encoder=parts.feed.cache_text)


# --- in the end -------------------------------------------------------------------------------------------------------


def finish(parts: Parts, measuring: Measuring, saver: PictureSaver, board: Board, sink: Sink) -> TrainResult:
    """Exports, proves that the file loads, and writes the report. UserError if the proof fails."""
    p, folder, c = parts, parts.folder, parts.config
    saver.write(folder.final, "LoRA")
    taken, file = saver.taken()
    proof = prove(folder.final, c, file, taken)
    sink(Note(proof))
    measuring.conclude()
    sink(Note("drawing the pictures of the report"))
    trigger = calling(c.named_words, [s.caption for s in p.samples])
    with though_finished(folder.final):
        rows = afterwards(rows_of(parts), p.model.family.told_of_latents())
        previews = reported(c, previews_of(c, p.samples))
        worn = wear(p.model, folder.final)
        drawn = report_pictures(worn, previews, short=c.report != "full")
    seen = look(worn, c, p.feed, p.held, p.samples, previews, drawn)
    seen.tell(sink)
    save_strength(folder, seen.strength)
    save_last_previews(folder, c, p.model, previews, drawn, p.state.step, board, sink)
    page = folder.report
    report(
        page,
        folder,
        c,
        proof=proof,
        rows=rows,
        previews=previews,
        drawn=drawn,
        state=p.state,
        rates=p.rates,
        measuring=measuring,
        seen=seen,
        samples=p.samples,
        trigger=trigger,
    )
    folder.conclude(sink)
    best = folder.best if folder.best.exists() else None
    words = {word: embedding_file(folder.final, word) for word in c.new_token}
    return TrainResult(
        name=folder.name,
        lora=folder.final,
        proof=proof,
        report=page,
        steps=p.state.step,
        loss=Smoothed(p.state.losses).value,
        best=best,
        warning=measuring.warning,
        trigger=trigger.phrase if trigger else "",
        strength=seen.strength.best if seen.strength else UNMEASURED,
        look_at=measuring.look_at,
        words=words,
    )
