"""`lora-scripts tune`."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lora_scripts import __version__, run
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.values import parse_path
from lora_scripts.errors import Diverged, Faults, UserError, raise_all
from lora_scripts.events import Event, Note, Progress, Sink, Stepped, ignore
from lora_scripts.formats import io
from lora_scripts.run.configs import cache_of, load_config
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.train.evidence import Evaluation, best_of
from lora_scripts.tune.search import Standing, Trial, next_power, standings

RATE = "learning_rate"
QUIET = {"report": "one", "save_precision": "fp32"}
"""Of pictures: a trial draws as few as it can, and its file holds however little it has learnt."""
SET = frozenset({"epochs", "output_dir", "cache_dir", "sample_every", "sample_every_epochs", "sample_first", *QUIET})
"""Keys that each trial has of its own."""
MEASURED = frozenset(
    {"train_data_dir", "metadata_path", "reference_dir", "train_file", "val_file", "val_data_dir", "val_split", "seed"}
    | {"base_model", "vae", "prediction", "zero_terminal_snr", "resolution", "timestep_min", "timestep_max"}
    | {"train_on", "chat_template", "max_length", "long_records"}
)
"""Keys that decide what is measured: other pictures or words, other noise or another base. Not those of the loss: what
is measured has none of its weights."""
FILES = ("base_model", "vae", "text_encoder", "init_lora", "training_adapter", "mask_dir", "class_data_dir")
"""Keys of files that decide what is learnt, besides the pictures."""
AGAIN = "the same command"
"""How a trial goes on that was stopped."""


@dataclass(frozen=True)
class TuneOptions:
    """What is asked for."""

    config: Path
    overrides: Sequence[str] = ()
    key: str = RATE
    values: Sequence[str] = ()
    """As they are written in a config; none: learning rates, each twice or half another, until both sides of the best
    are worse."""
    share: float = 0.25
    """Of the epochs of the run, that each trial has."""
    most: int = 6
    """Trials, where the values are not given."""


@dataclass(frozen=True)
class Tuned:
    """What the trials say."""

    key: str
    standings: Sequence[Standing]
    """The best first."""
    epochs: int
    """Of each trial,"""
    of: int
    """and of the run that they are for."""
    held_out: int
    """Pictures, or records, that the losses are of."""
    open: bool = False
    """That there may be a better one beyond those that were tried."""


def tune(options: TuneOptions, sink: Sink = ignore) -> Tuned:
    """Trains with one value after the other, and compares. What is finished is not trained again, and what was stopped
    goes on. UserErrors for mistakes, before a model loads."""
    config = load_config(options.config, options.overrides, sink, captions=True)
    _require_key(config, options)
    held_out, data = _data(config)
    if held_out == 0:
        hint = "write val_split: 0.1, or name val_data_dir"
        raise UserError("tune compares by held-out loss, and nothing is held out", file=options.config, hint=hint)
    trials = _Trials(options, config, data)
    faults = Faults()
    for value in options.values:
        faults.attempt(partial(trials.config_of, value))
    raise_all(faults)
    if options.values:
        tried, beyond = [trials.run(value, sink) for value in options.values], False
    else:
        tried, beyond = _rates(trials, sink)
    if all(trial.best is None for trial in tried):
        text = f"{options.key}: with none of {', '.join(options.values)} the loss is a number"
        raise UserError(text, file=options.config, hint="lower learning_rate")
    return Tuned(options.key, standings(tried, config.seed), trials.epochs, config.epochs, held_out, beyond)


def _rates(trials: _Trials, sink: Sink) -> tuple[list[Trial], bool]:
    """Learning rates, and whether there may be a better one beyond."""
    tried: dict[int, Trial] = {}
    while (power := next_power({p: _loss(trial) for p, trial in tried.items()})) is not None:
        if len(tried) == trials.options.most:
            break
        tried[power] = trials.run(f"{trials.whole.learning_rate * 2.0**power:.4g}", sink)
        if power == 0 and tried[0].best is None:
            raise UserError(f"learning_rate {tried[0].value} gives no loss that is a number", hint="write a lower one")
    return list(tried.values()), power is not None


def _data(config: TrainConfig) -> tuple[int, str]:
    """How many are held out, and a text that is another one for other data."""
    if run.of_texts(config):
        from lora_scripts.run.texts.preflight import preflight as of_texts

        texts = of_texts(config, resume=None).split
        return len(texts.held_out), repr([texts.digests, [number for _, number in texts.held_out]])
    from lora_scripts.run.preflight import preflight

    ready = preflight(config, resume=None)
    halves = (ready.samples.trained, ready.samples.held_out)
    each = [
        [(one.name, one.digest, one.caption, [other.digest for other in one.references]) for one in half]
        for half in halves
    ]
    return len(ready.samples.held_out), repr(each)


def _marks(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """What tells another content of files, or of all files in folders, without reading it. Not of hidden ones, in which
    systems and hubs keep notes of their own."""
    each = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    files = [file for file in each if file.is_file() and not file.name.startswith(".")]
    return [(file.as_posix(), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


def _files(config: TrainConfig, tried: str) -> Iterator[Path]:
    """Those that all trials have."""
    for key in FILES:
        value = getattr(config, key) if key != tried else None
        yield from value if isinstance(value, tuple) else [value] if value is not None else []


def _require_key(config: TrainConfig, options: TuneOptions) -> None:
    """UserError for a key of which no values can be compared."""
    another = "name another key: --try lora_rank=8,16,32"
    if options.key in SET:
        hint = "write --share" if options.key == "epochs" else another
        raise UserError(f"--try {options.key}: tune sets it for each trial", hint=hint)
    if options.key in MEASURED:
        raise UserError(f"--try {options.key}: it decides what is measured, so losses would not compare", hint=another)
    if not options.values and config.optimizer == "prodigy":
        raise UserError("prodigy finds its learning rate itself", file=options.config, hint=another)


def _loss(trial: Trial) -> float:
    return trial.best.loss if trial.best is not None else float("inf")


class _Trials:
    """Runs that differ in one key."""

    def __init__(self, options: TuneOptions, whole: TrainConfig, data: str) -> None:
        """`whole`: the run that they are for; `data`: a text of what it trains on."""
        self.options, self.whole = options, whole
        self.epochs = max(1, round(whole.epochs * options.share))
        # What is trained otherwise is no part of the comparison, and has another folder.
        keys = whole.model_dump(mode="json", exclude={options.key, "output_dir", "cache_dir"})
        others = _marks(_files(whole, options.key))
        told = json.dumps([__version__, keys, self.epochs, data, others], sort_keys=True, default=str)
        self.place = whole.output_dir / "tune" / _short(told)

    def config_of(self, value: str) -> TrainConfig:
        """Of the trial with this value. UserErrors for one that cannot be."""
        whole, cache = self.whole, cache_of(self.whole, self.whole.output_dir)
        own = {"epochs": str(self.epochs), "output_dir": self._place(value).as_posix(), "cache_dir": cache.as_posix()}
        own |= {"sample_every": "0", **({"sample_every_epochs": "null"} if whole.sample_every_epochs else {})}
        own |= {"sample_first": "false"} if whole.sample_first else {}
        own |= {} if run.of_texts(whole) else QUIET
        if whole.warmup_steps:  # else a short run might never reach its rate
            own["warmup_steps"] = str(round(whole.warmup_steps * self.epochs / whole.epochs))
        own[self.options.key] = value
        others = [told for told in self.options.overrides if told.partition("=")[0].strip() not in own]
        return load_config(self.options.config, [*others, *(f"{key}={value}" for key, value in own.items())])

    def _place(self, value: str) -> Path:
        """The folder of a trial: named by its value, or by a digest of one that is no name or leads to files."""
        name = value
        if self.options.key in FILES or not re.fullmatch(r"[\w.+-]{1,60}", value):
            name = _short(repr([value, _marks([parse_path(value)] if self.options.key in FILES else [])]))
        return self.place / f"{self.options.key}-{name}"

    def run(self, value: str, sink: Sink) -> Trial:
        """One of them; read from its folder where it is finished."""
        config = self.config_of(value)
        folder = RunFolder(config.output_dir, config.name)
        diverged = folder.path / "diverged"
        if not (folder.report.exists() or diverged.exists()):
            sink(Note(f"trial: {self.options.key} {value}, {self.epochs} of {self.whole.epochs} epochs"))
            try:
                run.train(config, resume=folder.newest_state() is not None, sink=_quiet(sink), again=AGAIN)
            except Diverged:
                io.make_folder(folder.path)
                io.write_text(diverged, "")
            shutil.rmtree(folder.states, ignore_errors=True)  # its LoRA and its losses stay
        if diverged.exists():
            return Trial(value, folder.path)
        taken = _evaluations(folder.measured)
        return Trial(value, folder.path, next((one for one in taken if one.name == "base"), None), best_of(taken))


def _evaluations(record: Path) -> list[Evaluation]:
    """What a trial has measured. UserError where that is gone."""
    try:
        rows = json.loads(record.read_text("utf-8"))["evaluations"]
        return [Evaluation(row["step"], row["held"], row["train"], row["name"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        hint = f"remove {record.parent.as_posix()}, and it is trained again"
        raise UserError("the losses of this trial cannot be read", file=record, hint=hint) from None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _quiet(sink: Sink) -> Sink:
    """Of a trial only how far it is."""

    def told(event: Event) -> None:
        if isinstance(event, Progress | Stepped):
            sink(event)

    return told
