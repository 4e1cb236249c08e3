"""Held-out loss: what is measured of a run besides what it trains, and what follows from it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.data.split import FEWEST
from lora_scripts.errors import UserError
from lora_scripts.events import Advised, Measured, Note, Sink
from lora_scripts.formats import io
from lora_scripts.report.data import HeldOutCurve
from lora_scripts.run.dataset import step_cost
from lora_scripts.run.parts import HeldOut, Model, Probed, Trained
from lora_scripts.seeds import lot_of
from lora_scripts.train.advise import AHEAD, Advice, Facts, advise, too_short
from lora_scripts.train.average import Ema, averaged
from lora_scripts.train.evidence import Evaluation, Verdict, best_of, bootstrap, judge, less, mean, stalled, words
from lora_scripts.train.feed import Feed, Settings
from lora_scripts.train.planned import Picture, plan_pictures
from lora_scripts.train.probe import Probe, Range
from lora_scripts.train.state import RunState
from lora_scripts.units import percent

LEVELS, FEW_LEVELS = (8, 4), (4, 3)
"""Noise levels at which a held-out picture, and a training picture, is measured; and in a run so short that measuring
would take much of its time."""
TRAIN_PICTURES = 6
"""Training pictures that are measured beside the held-out ones, to tell learning from memorising."""
LONG = 10
"""Epochs from which on every training picture is looked at, once, in the end."""
WHOLE_STRATA, WHOLE_PARTS, WHOLE_TIMES = 4, (0, 2), 2
"""The noise levels at which it is: textures and layout; with the base, and with the LoRA."""
TIMES = 10
"""Measurements in a run where nothing else is said."""


def build_held_out(config: TrainConfig, model: Model, feed: Feed, samples: Sequence[Sample], total: int) -> HeldOut:
    """What is measured of a run of `total` steps that `feed` feeds; `samples` are held out."""
    c, family = config, model.family
    settings = Settings(c.batch_size, 1, 1, c.seed, 0.0, False, 1, transparency=not c.mask_alpha)
    at_a_time = 4 * c.batch_size
    pictures = planned(c, family.facts.bucket_steps, samples)
    outside = Feed(family, pictures, settings, cache_text=feed.cache_text)

    def probe(feed: Feed, indices: Sequence[int], strata: int) -> Probe:
        levels = Range(strata, c.timestep_min, c.timestep_max)
        return Probe(feed, indices, family.objective, levels, c.seed, at_a_time)

    own = [i for i, p in enumerate(feed.pictures) if not p.of_class]
    some = sorted(own, key=lambda i: _draw(c.seed, feed.pictures[i].sample.digest))[:TRAIN_PICTURES]
    measures = c.val_split != 0 or c.val_data_dir is not None
    held = HeldOut(
        samples=list(samples),
        feed=outside,
        outside=probe(outside, range(len(samples)), LEVELS[0]),
        inside=probe(feed, some, LEVELS[1]),
        whole=replace(probe(feed, own, WHOLE_STRATA), parts=WHOLE_PARTS, common=True),
        every=0,
        looks_at_whole=measures and c.epochs * min(feed.times[i] for i in own) >= LONG,
    )
    return replace(held, every=(c.val_every or -(-total // TIMES)) if measures else 0)


def planned(c: TrainConfig, steps: tuple[int, int], samples: Sequence[Sample]) -> list[Picture]:
    """Those that are held out, as they are measured; `steps`: as `Facts.bucket_steps`."""
    return plan_pictures(samples, c.size, steps, flip=False, random_crop=False, seed=c.seed)


def levels_of(held: HeldOut) -> tuple[int, int]:
    """At how many noise levels it measures a held-out picture, and a training picture."""
    return held.outside.levels.strata, held.inside.levels.strata


def at_levels(held: HeldOut, levels: tuple[int, int]) -> HeldOut:
    """The same, measured at so many."""

    def at(probe: Probe, strata: int) -> Probe:
        return replace(probe, levels=replace(probe.levels, strata=strata))

    return replace(held, outside=at(held.outside, levels[0]), inside=at(held.inside, levels[1]))


def as_before(held: HeldOut, state: RunState) -> HeldOut:
    """Measures as a resumed run did, whose length, and with it what is measured, may be another now."""
    return at_levels(held, (state.levels[0], state.levels[1]) if state.levels else LEVELS)


def share(held: HeldOut, config: TrainConfig, total: int) -> float:
    """Of the run's time that measuring takes, as forecast from what a step costs."""
    count = passes(held, config, total)
    return count / (count + trained(config, total))


def passes(held: HeldOut, config: TrainConfig, total: int) -> int:
    """Forward passes of one picture that measuring takes."""
    if not held.on:
        return 0
    times = -(-total // held.every) + 2 + (config.init_lora is not None)  # the base, and in the end a stronger LoRA
    outside, inside = levels_of(held)
    count = times * (len(held.samples) * outside + len(held.inside.indices) * inside)
    return count + WHOLE_TIMES * len(WHOLE_PARTS) * len(held.whole.indices) * held.looks_at_whole


def trained(config: TrainConfig, total: int) -> float:
    """What the training takes, in such passes."""
    return total * config.batch_size * config.gradient_accumulation * step_cost(config)


def row(held: HeldOut, config: TrainConfig, pictures: int) -> tuple[str, str]:
    """Of the table before the first step; `pictures`: how many are trained."""
    if not held.on:
        return "held out", "none, and nothing is measured (val_split: 0)"
    count = len(held.samples)
    many = f"{count} of {count + pictures} images" if count else f"none of fewer than {FEWEST} images"
    if config.val_data_dir:
        many = f"{count} images of {config.val_data_dir}"
    return "held out", f"{many}; measured every {held.every} steps"


class Measuring:
    """Measures one run, and says what follows. What was measured stands in the run's state, so a resumed run has it."""

    def __init__(
        self,
        held: Probed,
        model: Trained,
        ema: Ema | None,
        state: RunState,
        facts: Facts,
        *,
        seed: int,
        patience: int | None,
        record: Path,
        curves: Callable[[int, Mapping[str, float]], None],
        sink: Sink,
    ) -> None:
        """`record`: the JSON file of all measurements; `curves(step, values)`: TensorBoard."""
        self.held, self.model, self.ema, self.state, self.facts = held, model, ema, state, facts
        self.seed, self.patience, self.record, self.curves, self.sink = seed, patience, record, curves, sink
        self.seconds, self.begun = 0.0, time.perf_counter()
        self.late: list[Advice] = []
        """What could only be told in the end."""

    @property
    def evaluations(self) -> list[Evaluation]:
        return [Evaluation(**fields) for fields in self.state.evaluations]

    @property
    def ended(self) -> bool:
        """That patience has run out."""
        return self.held.on and self.patience is not None and stalled(self.evaluations, self.patience)

    @property
    def at_best(self) -> bool:
        """Whether the weights are those of the lowest held-out loss so far, the base's among them."""
        verdict = self.verdict if self.held.on else None
        return verdict is not None and verdict.best.step == self.state.step and not verdict.worse

    @property
    def verdict(self) -> Verdict | None:
        return judge(self.evaluations, self.seed)

    # --- measuring ---------------------------------------------------------------------------------------------------

    def begin(self, *, from_lora: bool) -> None:
        """Measures the base, and the LoRA that the run starts from, unless a resumed run has them; and the step that
        memory did not suffice to measure."""
        self.begun = time.perf_counter()
        if self.held.on and not self.state.evaluations:
            with self.model.off():
                self._take("base")
            if from_lora:
                self._take("init")
        elif self.held.on and self.state.step % self.held.every == 0 and self.evaluations[-1].step < self.state.step:
            self.measure()

    def measure(self) -> bool:
        """Measures the averaged weights as they stand; True if the run shall end here."""
        self._take("")
        if self.ended:
            best = best_of(self.evaluations)
            assert best is not None
            text = f"no lower held-out loss in {self.patience} measurements, the lowest was at step {best.step}"
            self.sink(Note(f"stopping early at step {self.state.step}: {text}"))
        return self.ended

    def _take(self, name: str) -> None:
        begun = time.perf_counter()
        self.state.evaluations.append(asdict(self._evaluation(name)))
        self.seconds += time.perf_counter() - begun
        self._tell()

    def _evaluation(self, name: str) -> Evaluation:
        """Of the model as it stands."""
        self.model.train(False)
        with averaged(self.model.trained, self.model.optimizer, self.ema):
            outside = self.held.outside.losses().mean(1).tolist() if len(self.held.samples) else []
            inside = self.held.inside.losses().mean(1).tolist()
        self.model.train(True)
        return Evaluation(self.state.step, outside, inside, name)

    def _tell(self) -> None:
        """An event, TensorBoard, the record, and advice where there is something new."""
        taken = self.evaluations
        base, now = taken[0], taken[-1]
        values = {f"heldout/training_{self.facts.samples}": mean(now.train)}
        if now.held:
            gain = bootstrap(less(base.held, now.held), self.seed)
            values |= {"heldout/loss": now.loss, "heldout/improvement": gain.mean}
            perplexity = math.exp(now.loss) if self.held.of_tokens else None
            values |= {} if perplexity is None else {"heldout/perplexity": perplexity}
            self.sink(Measured(now.step, now.name, now.loss, gain.mean / base.loss, perplexity))
        self.curves(now.step, values)
        self._write()
        known = {one.kind for one in advise(taken[:-1], self.facts)}
        for one in advise(taken, self.facts):
            if one.kind not in known:
                self.sink(Advised(one.kind, str(one)))

    def _write(self) -> None:
        verdict = self.verdict
        values = {
            **self.held.about(),
            "evaluations": [asdict(e) for e in self.evaluations],
            "best": verdict.best.step if verdict else None,
            "words": self.words,
        }
        try:
            io.write_text(self.record, json.dumps(values, indent=1) + "\n")
        except UserError as error:  # it all stands in the state, too
            self.sink(Note(f"note: {error}; the training goes on"))

    def conclude(self) -> None:
        """Says at the end what the measurements say, and looks for samples that did not fit."""
        if not self.held.on:
            return
        begun = time.perf_counter()
        self.late = self.held.strays(self.model, self.ema, self.state.step)
        last, told = self.evaluations[-1], {one.kind for one in advise(self.evaluations, self.facts)}
        if not last.name and not told & {"rises", "oscillates", "does_not_fall", "memorises"}:
            start = [one for one in self.evaluations if one.name][-1]
            with self.model.at(AHEAD):
                ahead = self._evaluation("")
            self.late += filter(None, [too_short(start, last, ahead, self.facts)])
        self.seconds += time.perf_counter() - begun
        for one in self.late:
            self.sink(Advised(one.kind, str(one)))
        for line in self.words:
            self.sink(Note(line))
        taken = self.seconds / (time.perf_counter() - self.begun)
        self.sink(Note(f"measuring took {percent(taken)} of the time"))

    @property
    def warning(self) -> str:
        """Why it is better not to use the LoRA; empty for a healthy one."""
        verdict = self.verdict if self.held.on else None
        if verdict is None or not verdict.worse:
            return ""
        base = self.evaluations[0].loss
        higher = percent(-verdict.improvement.mean / base)
        what = "the pictures and captions" if self.facts.samples == "pictures" else f"the {self.facts.samples}"
        mend = f"lower learning_rate, or look at {what}, and train again"
        return f"this LoRA is worse than the base: its held-out loss is {higher} higher at the best; {mend}"

    # --- telling -----------------------------------------------------------------------------------------------------

    @property
    def words(self) -> list[str]:
        """The verdict."""
        verdict = self.verdict
        return words(verdict, self.evaluations, self.facts.samples) if verdict else []

    @property
    def advice(self) -> list[Advice]:
        """All of it, for the report."""
        given = advise(self.evaluations, self.facts) if self.held.on else []
        return [*given, *self.late]

    @property
    def look_at(self) -> str:
        """Files that somebody should look at; empty for none."""
        return ", ".join(dict.fromkeys(name for one in self.late for name in one.names))

    def curve(self) -> HeldOutCurve | None:
        """For the report."""
        points = [e for e in self.evaluations if e.name != "init"] if self.held.on else []
        held = [(e.step, e.loss) for e in points if e.held]
        train = [(e.step, mean(e.train)) for e in points]
        return HeldOutCurve(held, train, self.words, self.facts.samples) if points else None


def _draw(seed: int, digest: str) -> bytes:
    return lot_of(f"probe/{seed}/{digest}")
