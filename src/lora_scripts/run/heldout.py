"""Held-out loss: what is measured of a run besides what it trains, and what follows from it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_scripts.data.cache import Cache
from lora_scripts.data.scan import Sample
from lora_scripts.data.split import FEWEST
from lora_scripts.formats import io
from lora_scripts.losses.diffusion import Objective
from lora_scripts.report.data import HeldOutCurve
from lora_scripts.run import advice
from lora_scripts.train.advise import Advice, advise, never_fit
from lora_scripts.train.evidence import FEWEST as FEWEST_FOR_INTERVALS
from lora_scripts.train.evidence import Evaluation, Verdict, best_of, bootstrap, judge, less, mean, stalled
from lora_scripts.train.feed import Feed, Settings, plan_pictures
from lora_scripts.train.probe import Probe, Range

if TYPE_CHECKING:
    from lora_scripts.run.story import Run

STRATA, TRAIN_STRATA = 8, 4
"""Noise levels at which a held-out picture, and a training picture, is measured."""
TRAIN_PICTURES = 6
"""Training pictures that are measured beside the held-out ones, to tell learning from memorising."""
LONG = 10
"""Epochs from which on every training picture is looked at, once, in the end."""
STEP_COST = 2.3
"""A step's time for one picture, in forward passes; measured: 2.1 to 2.3 on a CPU."""


class HeldOut:
    """The measuring of one run. Everything it knows stands in the run's state, so a resumed run goes on with it."""

    def __init__(self, run: Run, held: Sequence[Sample]) -> None:
        self.run, self.held, self.seconds, self.begun = run, list(held), 0.0, time.perf_counter()
        c = run.config
        self.on = c.val_split != 0 or c.val_data_dir is not None
        self.every = (c.val_every or c.save_steps) if self.on else 0
        objective = Objective(c.prediction, zero_terminal_snr=c.zero_terminal_snr)
        step, batch = run.family.facts.bucket_step, 4 * c.batch_size
        pictures = plan_pictures(self.held, c.size, step, flip=False, random_crop=False, seed=c.seed)
        settings = Settings(c.batch_size, 1, 1, c.seed, 0.0, False, 1)
        feed = Feed(run.family, pictures, settings, cache_text=run.feed.cache_text)

        def probe(feed: Feed, indices: Sequence[int], strata: int) -> Probe:
            return Probe(feed, indices, objective, Range(strata, c.timestep_min, c.timestep_max), c.seed, batch)

        own = [i for i, p in enumerate(run.feed.pictures) if not p.of_class]
        drawn = sorted(own, key=lambda i: _draw(c.seed, run.feed.pictures[i].sample.digest))[:TRAIN_PICTURES]
        self.feed = feed
        self.outside = probe(feed, range(len(self.held)), STRATA)
        self.inside = probe(run.feed, drawn, TRAIN_STRATA)
        noisy = Range(2, *_upper(c.timestep_min, c.timestep_max))
        self.all = Probe(run.feed, own, objective, noisy, c.seed, batch, common=True)
        self.strays: Advice | None = None

    def silence(self) -> None:
        """Measures nothing from here on."""
        self.on, self.every = False, 0

    def fill(self, cache: Cache, tell: Callable[[str, int, int], None]) -> None:
        """Encodes the held-out pictures."""
        if self.on and self.held:
            self.feed.fill(cache, tell)

    @property
    def evaluations(self) -> list[Evaluation]:
        return [Evaluation(**row) for row in self.run.state.evaluations]

    @property
    def ended(self) -> bool:
        """That patience has run out."""
        patience = self.run.config.patience
        return self.on and patience is not None and stalled(self.evaluations, patience)

    @property
    def verdict(self) -> Verdict | None:
        return judge(self.evaluations, self.run.config.seed)

    # --- measuring ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Measures the base, and the LoRA that the run starts from, unless a resumed run has them."""
        self.begun = time.perf_counter()
        if not self.on:
            return
        if not self.run.state.evaluations:
            with self.run.model.off():
                self._take("base")
            if self.run.config.init_lora is not None:
                self._take("init")
        self.keep_best()

    def measure(self) -> bool:
        """Measures the averaged weights as they stand; True if the run shall end here."""
        self._take("")
        if self.ended:
            best = best_of(self.evaluations)
            assert best is not None
            print(
                f"stopping early at step {self.run.state.step}: no lower held-out loss in {self.run.config.patience} "
                f"measurements, the lowest was at step {best.step}",
                flush=True,
            )
        return self.ended

    def _take(self, name: str) -> None:
        run, begun = self.run, time.perf_counter()
        run.model.train(False)
        with run.averaged():
            held = self.outside.losses().mean(1).tolist() if self.held else []
            train = self.inside.losses().mean(1).tolist()
        run.model.train(True)
        run.state.evaluations.append(asdict(Evaluation(run.state.step, held, train, name)))
        self.seconds += time.perf_counter() - begun
        self._tell()

    def _tell(self) -> None:
        """One line, TensorBoard, heldout.json, and advice where there is something new."""
        taken, board = self.evaluations, self.run.board
        base, now = taken[0], taken[-1]
        values = {"heldout/training_pictures": mean(now.train)}
        if now.held:
            won = bootstrap(less(base.held, now.held), self.run.config.seed)
            values |= {"heldout/loss": now.loss, "heldout/improvement": won.mean}
            what = {"base": "base model", "init": "init_lora as it is"}.get(now.name, f"step {now.step}")
            told = "" if now.name == "base" else f", {change(won.mean, base.loss)} than the base's"
            print(f"held-out loss at {what}: {now.loss:.4f}{told}", flush=True)
        board.scalars(now.step, values)
        self._write()
        advice.tell_new(self.run)

    def _write(self) -> None:
        taken, verdict = self.evaluations, self.verdict
        told = {
            "pictures": [s.name for s in self.held],
            "training_pictures": [self.run.feed.pictures[i].sample.name for i in self.inside.indices],
            "noise_levels": {"held_out": STRATA, "training": TRAIN_STRATA},
            "evaluations": [asdict(e) for e in taken],
            "best": verdict.best.step if verdict else None,
            "words": self.words,
        }
        io.write_text(self.run.folder.path / "heldout.json", json.dumps(told, indent=1) + "\n")

    def keep_best(self) -> None:
        """Writes NAME-best.safetensors if the weights are those of the lowest held-out loss so far."""
        best = best_of(self.evaluations) if self.on else None
        if best is not None and best.step == self.run.state.step:
            self.run.exporter.write(self.run.folder.best)

    def conclude(self) -> None:
        """Says at the end what the measurements say, and looks for pictures that did not fit."""
        if not self.on:
            return
        self.strays = never_fit(self.run.state.step, *self.fit()) if self.looks_at_all else None
        if self.strays is not None:
            print(f"advice: {self.strays}", flush=True)
        for line in self.words:
            print(line, flush=True)
        share = self.seconds / (time.perf_counter() - self.begun)
        print(f"measuring took {share:.0%} of the time".replace("%", " %"), flush=True)

    @property
    def looks_at_all(self) -> bool:
        """Whether every training picture is looked at in the end: not in a short run, whose time it would take."""
        return self.on and self.run.config.epochs * self.run.config.repeats >= LONG

    def fit(self) -> tuple[list[str], list[float]]:
        """Names of all training pictures, and how much of the base's loss at high noise is left of each: its log."""
        run, begun = self.run, time.perf_counter()
        run.model.train(False)
        with run.model.off():
            before = self.all.losses()
        with run.averaged():
            after = self.all.losses()
        run.model.train(True)
        self.seconds += time.perf_counter() - begun
        names = [run.feed.pictures[i].sample.name for i in self.all.indices]
        return names, (after / before).log().mean(1).tolist()

    # --- telling -----------------------------------------------------------------------------------------------------

    @property
    def words(self) -> list[str]:
        """The verdict."""
        verdict = self.verdict
        return words(verdict, self.evaluations) if verdict else []

    @property
    def advice(self) -> list[Advice]:
        """All of it, for the report."""
        found = advise(self.evaluations, advice.facts_of(self.run)) if self.on else []
        return [*found, self.strays] if self.strays else found

    def curve(self) -> HeldOutCurve | None:
        """For the report."""
        points = [e for e in self.evaluations if e.name != "init"] if self.on else []
        held = [(e.step, e.loss) for e in points if e.held]
        return HeldOutCurve(held, [(e.step, mean(e.train)) for e in points], self.words) if points else None

    def share(self) -> float:
        """Of the run's time, as forecast from what a step costs."""
        c, run = self.run.config, self.run
        if not self.on:
            return 0.0
        times = -(-run.total // self.every) + 1 + (c.init_lora is not None)
        passes = times * (len(self.held) * STRATA + len(self.inside.indices) * TRAIN_STRATA)
        passes += 4 * len(self.all.indices) * self.looks_at_all
        trained = run.total * c.batch_size * c.gradient_accumulation * STEP_COST
        return passes / (passes + trained)

    def row(self) -> tuple[str, str]:
        """Of the table before the first step."""
        if not self.on:
            return "held out", "none, and nothing is measured (val_split: 0)"
        whole = len(self.held) + (0 if self.run.config.val_data_dir else len(self.run.samples))
        where = f" of {self.run.config.val_data_dir}" if self.run.config.val_data_dir else f" of {whole}"
        many = f"{len(self.held)}{where} images" if self.held else f"none of fewer than {FEWEST} images"
        return "held out", f"{many}; measured every {self.every} steps, about {self.share():.0%} of the time"


def change(won: float, base: float) -> str:
    """ "3.1 % lower" """
    return f"{abs(won) / base:.1%}".replace("%", " %") + (" lower" if won >= 0 else " higher")


def words(verdict: Verdict, taken: Sequence[Evaluation]) -> list[str]:
    """What the held-out pictures say at the end."""
    base, count = taken[0], len(verdict.best.held)
    won, gap = verdict.improvement, verdict.gap
    few = count < FEWEST_FOR_INTERVALS
    sure = f", too few pictures ({count}) for an interval" if few else f" (95 %: {won.low:.4f} to {won.high:.4f})"
    told = [
        f"held-out loss: base {base.loss:.4f}, lowest {verdict.best.loss:.4f} at step {verdict.best.step}, "
        f"{change(won.mean, base.loss)} by {won.mean:.4f}{sure}"
    ]
    if verdict.best is verdict.last:
        told.append("the last step is the best")
    elif verdict.separate:
        sure = f"(95 %: {gap.low:.4f} to {gap.high:.4f})"
        told.append(
            f"step {verdict.best.step} is better than the last, step {verdict.last.step}: by {gap.mean:.4f} {sure}"
        )
    else:
        told.append(
            f"step {verdict.best.step} is not proved better than the last, step {verdict.last.step}: the difference is "
            f"{gap.mean:.4f}" + (", of too few pictures" if few else f" (95 %: {gap.low:.4f} to {gap.high:.4f})")
        )
    init = next((e for e in taken if e.name == "init"), None)
    if init is not None and verdict.against_init is not None:
        from_init = verdict.against_init
        sure = "" if few else f" (95 %: {from_init.low:.4f} to {from_init.high:.4f})"
        told.append(
            f"before and after: base {base.loss:.4f}, init_lora {init.loss:.4f}, now {verdict.last.loss:.4f}, "
            f"{change(from_init.mean, init.loss)} than init_lora by {abs(from_init.mean):.4f}{sure}"
        )
    return told


def _upper(first: int, last: int) -> tuple[int, int]:
    """The noisier two fifths of a range, where style and layout are decided."""
    return first + round(0.6 * (last - first + 1)), last


def _draw(seed: int, digest: str) -> bytes:
    return hashlib.sha256(f"probe/{seed}/{digest}".encode()).digest()
