"""The story of one run on texts, from the loaded base to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_scripts.compute.device import choose_device, choose_precision
from lora_scripts.compute.mapped import Leases
from lora_scripts.config.schema import TrainConfig
from lora_scripts.events import Note, Saved, Sink, Table
from lora_scripts.families.sequences import marked
from lora_scripts.families.texts import Answer
from lora_scripts.formats import io
from lora_scripts.report.text_page import AnswerPair, TextReportData, render
from lora_scripts.run import stepping
from lora_scripts.run.base_files import BaseFiles, weights_in
from lora_scripts.run.build import DIGESTS, rates_of
from lora_scripts.run.configs import cache_of, dump_config
from lora_scripts.run.heldout import Measuring
from lora_scripts.run.init_lora import read_initial
from lora_scripts.run.parts import TextModel
from lora_scripts.run.resume import CONFIG, config_digest, new_text_state, restore
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.run.shortage import ELSEWHERE, enough_memory, rescuing, smaller_words
from lora_scripts.run.stepping import Saver, measuring_of
from lora_scripts.run.stopping import SAVED, ended_by, signals, stoppable
from lora_scripts.run.texts import answers, export
from lora_scripts.run.texts.answers import Question
from lora_scripts.run.texts.build import build_model, load
from lora_scripts.run.texts.dataset import Encoded, TextHeldOut, build_feed, build_held_out, encode, tell
from lora_scripts.run.texts.overview import table_rows
from lora_scripts.run.texts.preflight import TextSplit
from lora_scripts.train.average import Ema
from lora_scripts.train.optim import Rates
from lora_scripts.train.passes import there_and_back
from lora_scripts.train.progress import Board, Smoothed
from lora_scripts.train.state import RunState
from lora_scripts.train.text_feed import TextFeed


@dataclass(frozen=True)
class TextTrainResult:
    """What a finished training leaves."""

    name: str
    lora: Path
    """The folder of the adapter."""
    base: Path
    proof: str
    """What was found when the folder was read again, in a line."""
    report: Path
    steps: int
    loss: float
    """Smoothed, of the last steps."""
    best: Path | None
    """The LoRA of the lowest held-out loss; None where nothing was held out, or the base is better."""
    warning: str
    """Why it is better not to use the LoRA; empty for a healthy one."""


@dataclass(frozen=True)
class TextParts:
    """One run, ready to train."""

    config: TrainConfig
    folder: RunFolder
    device: torch.device
    precision: str
    model: TextModel
    encoded: Encoded
    feed: TextFeed
    held: TextHeldOut
    questions: list[Question]
    rates: Rates
    ema: Ema | None
    scaler: torch.amp.GradScaler
    state: RunState


def train(
    config: TrainConfig, folder: RunFolder, split: TextSplit, *, resume: bool, sink: Sink, again: str = "--resume"
) -> TextTrainResult:
    """Prepares, trains, exports, proves and reports. UserError for a person's mistake; KeyboardInterrupt when it was
    stopped, everything saved. `again`: how the person goes on then."""
    with folder.locked(), signals(sink, resume=resume, again=again) as stopped, Leases() as leases:
        sink = stoppable(sink, stopped)
        found = folder.check(resume=resume)  # again: an interrupted save has been put right
        with enough_memory("loading the base", f"{ELSEWHERE}, or write base_precision: int8"):
            parts = assemble(config, folder, split, sink)
        parts.model.files.lend(leases, sink)
        if found is not None:
            restore(parts.state, found, parts.model, parts.ema, parts.scaler, parts.rates, sink, folder=folder)
        sink(Table("", tuple(rows_of(parts))))
        tell(parts.model.family, config, parts.encoded, parts.feed, sink)
        if (why := export.elsewhere(parts.model)) is not None:
            sink(Note(f"note: {why}"))
        io.write_text(folder.path / "config.yaml", dump_config(config))
        saver, board = TextSaver(parts, sink), Board(folder.logs, parts.state.step, sink)
        saver.complete()
        try:
            measuring = measuring_of(parts, board, sink, samples="records", suffix="")
            optimizer = parts.model.optimizer
            with rescuing(saver.save, lambda: saver.saved, parts.state, optimizer, parts.scaler, config, texts=True):
                stopped.begin("steps")
                done = train_steps(parts, measuring, saver, board, stopped, sink)
        finally:
            board.close()
        if not done:
            raise ended_by(stopped(), SAVED.format(step=parts.state.step, again=again))
        stopped.begin("report")
        with enough_memory("answering for the report", f"go on with --resume; {folder.final} is written"):
            return finish(parts, measuring, saver, sink)


def assemble(config: TrainConfig, folder: RunFolder, split: TextSplit, sink: Sink) -> TextParts:
    """Everything that a run is made of, before its first step."""
    c, device = config, choose_device(config.device)
    precision = choose_precision(c.precision, device)
    initial = read_initial(c)
    files = BaseFiles(weights_in(c.base_model, ["."]))  # seen before they are opened
    read = files.begin(lambda key: False, record=cache_of(c, folder.path) / DIGESTS)
    family = load(c, device, precision)
    encoded = encode(family, c, split, sink)
    feed = build_feed(family, c, encoded)
    total = feed.steps_per_epoch * c.epochs
    model = build_model(c, family, initial, files, read)
    data = {
        **split.digests,
        "tokens": encoded.trained.digest,
        "held-out tokens": encoded.held_out.digest,
        "base_model": model.base_digest,
        CONFIG: config_digest(c.base_model),
    }
    return TextParts(
        config=c,
        folder=folder,
        device=device,
        precision=precision,
        model=model,
        encoded=encoded,
        feed=feed,
        held=build_held_out(family, c, encoded, total),
        questions=answers.questions(c, split, family),
        rates=rates_of(c),
        ema=Ema(model.weights(), c.ema_decay) if c.ema_decay else None,
        # The loss is a sum over tokens, often a thousand: as much scaled as a mean is by the usual 65,536.
        scaler=torch.amp.GradScaler(device.type, init_scale=64.0, enabled=precision == "fp16"),
        state=new_text_state(c, data, total, device, precision, lora_rank=model.rank),
    )


def rows_of(parts: TextParts) -> list[tuple[str, str]]:
    """The table of a run."""
    p, state = parts, parts.state
    return table_rows(
        p.config,
        p.model,
        p.encoded,
        p.feed,
        p.held,
        steps=state.total,
        done=state.step,
        smaller=smaller_words(state),
        precision=p.precision,
        device=p.device,
        output=p.folder.final,
    )


class TextSaver(Saver):
    """An adapter is a folder, as PEFT has it."""

    def __init__(self, parts: TextParts, sink: Sink) -> None:
        super().__init__(parts, sink)
        self.parts = parts

    def write(self, path: Path, what: str) -> None:
        """The LoRA as it is now."""
        p, c = self.parts, self.parts.config
        facts = {
            "step": p.state.step,
            "steps": p.state.total,
            "records": len(p.encoded.trained),
            "tokens": p.encoded.counts.trained,
            "train_on": c.train_on,
            "learning_rate": c.learning_rate,
            "batch_size": c.batch_size * c.gradient_accumulation,
            "seed": c.seed,
        }
        export.write(path, c, p.model, export.weights_of(p.model, p.ema), facts)
        self.sink(Saved(what, path, p.state.step))


def train_steps(
    parts: TextParts,
    measuring: Measuring,
    saver: TextSaver,
    board: Board,
    stopped: Callable[[], int],
    sink: Sink,
) -> bool:
    """All steps from where the state stands; False if it was stopped before the last."""
    p, model = parts, parts.model

    def preview() -> None:
        save_answers(p, answers.answered_now(model, p.ema, p.config, p.questions), sink)

    go = there_and_back(model.family.loss, p.scaler, model.masters.gather, model.masters.forget)
    told = stepping.telling(p, board, sink, "tokens")
    return stepping.train_steps(
        p,
        go,
        p.feed.steps,
        measuring,
        saver,
        told=told,
        preview=preview,
        previews=len(p.questions),
        stopped=stopped,
        sink=sink,
    )


def save_answers(parts: TextParts, given: Sequence[Answer], sink: Sink) -> None:
    """Each into samples/, as a text."""
    for number, (question, answer) in enumerate(zip(parts.questions, given, strict=True), 1):
        path = parts.folder.sample(parts.state.step, number, ".txt")
        answers.save(path, question, answer)
        sink(Saved("preview", path, parts.state.step))


def finish(parts: TextParts, measuring: Measuring, saver: TextSaver, sink: Sink) -> TextTrainResult:
    """Exports, proves that the folder loads, and writes the report. UserError if the proof fails."""
    p, c, folder, model = parts, parts.config, parts.folder, parts.model
    saver.write(folder.final, "LoRA")
    proof = export.prove(folder.final, c, model, p.ema, list(p.encoded.held_out[:2]) or p.encoded.trained[:2])
    sink(Note(proof))
    measuring.conclude()
    sink(Note("answering the questions of the report"))
    after = answers.answered_now(model, p.ema, c, p.questions)
    save_answers(parts, after, sink)
    model.train(False)
    with model.off():
        before = answers.answered(model.family, c, p.questions)
    page = folder.report
    data = TextReportData(
        name=folder.name,
        folder=str(folder.final),
        base=str(c.base_model),
        verification=proof,
        language=c.language,
        warning=measuring.warning,
        facts=[*rows_of(parts), ("finished", time.strftime("%Y-%m-%d %H:%M"))],
        answers=[
            AnswerPair(
                one.asked, old.text, new.text, one.wanted, new.stopped, answers.earlier(folder, number, p.state.step)
            )
            for number, (one, old, new) in enumerate(zip(p.questions, before, after, strict=True), 1)
        ],
        example=marked(p.encoded.trained[0], model.family.decode),
        loss=list(enumerate(p.state.losses, 1)),
        learning_rate=p.rates.curve(c.learning_rate, p.state.total, p.state.step),
        held_out=measuring.curve(),
        advice=[str(one) for one in measuring.advice],
        config_text=dump_config(c),
        versions=p.state.versions,
    )
    io.write_text(page, render(data))
    folder.conclude(sink)
    return TextTrainResult(
        folder.name,
        folder.final,
        c.base_model,
        proof,
        page,
        p.state.step,
        Smoothed(p.state.losses).value,
        folder.best if folder.best.exists() else None,
        measuring.warning,
    )
