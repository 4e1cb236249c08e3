"""Going on exactly where a run stopped: what must be the same, what is told, what is put back."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python

from lora_scripts import __version__
from lora_scripts.check.caption_findings import cut
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Sink
from lora_scripts.families.clip.prompts import CUT
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.loras.file import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_scripts.run.base_files import weights_in
from lora_scripts.run.parts import Model, Trained
from lora_scripts.run.pivotal import stop_of
from lora_scripts.run.run_folder import RunFolder, beginning_with
from lora_scripts.train import state as states
from lora_scripts.train.average import Ema
from lora_scripts.train.optim import Rates
from lora_scripts.train.state import RunState
from lora_scripts.units import listed

_ASIDE = " (held out)"
"""Behind the name of a picture that is held out."""
CONFIG = "config.json of base_model"
"""Of a language model: what a run computes follows from it as from the weights, such as rope_scaling."""
_OF_NO_STEP = ("_name_or_path", "transformers_version", "use_cache")
"""What in it no step depends on."""
_RECORDS, _TOKENS = {"records", "held-out records"}, {"tokens", "held-out tokens"}
# A resumed run may change these: they decide what is shown and kept, or are held against the data by their content.
FREE_KEYS = {
    *("train_data_dir", "metadata_path", "base_model", "vae", "init_lora", "output_dir", "cache_dir", "device"),
    *("text_encoder", "training_adapter", "mask_dir", "reference_dir", "class_data_dir"),
    *("val_data_dir", "val_every", "patience", "train_file", "val_file", "answer_tokens"),
    *("gradient_checkpointing", "offload_blocks", "cuda_graphs"),  # the same numbers, computed or brought another way
    "on_oom",  # what it did stands in the state
    *("save_steps", "keep_last", "save_precision", "metadata_captions", "trigger_word", "language"),
    *(
        "sample_prompts",
        "sample_every",
        "sample_every_epochs",
        "sample_first",
        "token_bundle",
        "sample_steps",
        "sample_cfg",
        "sample_negative",
        "sample_size",
        "report",
    ),
}


def new_state(
    config: TrainConfig,
    model: Model,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    masks: Mapping[str, str],
    total: int,
    precision: str,
) -> RunState:
    """The state of a run before its first step. `samples`: all that are trained, those of the class too; `masks`: name
    -> digest of those that are files of their own."""
    keys = config.model_dump(mode="json", exclude=FREE_KEYS)
    keys["lora_rank"] = model.rank  # of init_lora, where it is not written
    keys["prediction"] = model.family.objective.prediction  # of the base, where it is not written
    keys["noise levels"] = "spread evenly"  # runs that began with independent ones would go on otherwise
    if config.preserve_weight is not None:  # else what the word is decides nothing
        keys["called by"] = listed(config.named_words, len(config.named_words)) or None
    digests = _digests(config, model, samples, held_out) | {f"mask of {name}": one for name, one in masks.items()}
    captions = {name: s.caption for s, name in [*_named(samples), *_named(held_out, _ASIDE)]}
    environment = _environment(model.family.device, precision)
    reads = CUT if "clip" in model.family.facts.features else ""
    return RunState(0, total, keys, digests, environment, captions=captions, name=config.name, reads=reads)


def new_text_state(
    config: TrainConfig, data: dict[str, str], total: int, device: torch.device, precision: str, **keys: object
) -> RunState:
    """The same of a run on texts. `data`: digests of what it is made of; `keys`: of the config as they
    are, where they are not written."""
    own = config.model_dump(mode="json", exclude=FREE_KEYS) | keys
    initial = {"init_lora": _digest_of_lora(config.init_lora)} if config.init_lora else {}
    return RunState(0, total, own, data | initial, _environment(device, precision), name=config.name)


def restore(
    state: RunState,
    found: Path,
    model: Trained,
    ema: Ema | None,
    scaler: torch.amp.GradScaler,
    rates: Rates,
    sink: Sink,
    *,
    folder: RunFolder,
) -> None:
    """Puts the state in `found` into `state`, weights and moments into the model. `folder`: the run's.

    A run may get another length where the steps that are done would have been the same in a run of that length.
    UserError, naming all of it, if what decides the weights has changed.
    """
    old, weights, moments = states.unpack(found)
    changed = states.changes(as_now(old.config), state.config)
    length = next((change for change in changed if change.startswith("epochs: ")), None)
    why = other_length(old, state, rates) if length else ""
    if length:
        changed = [f"{length} ({why})" if change == length else change for change in changed if why or change != length]
    names = _differing(old.data, state.data)
    if names:
        changed.append(listed([_changed(name, old, state) for name in names], 5))
    if changed:
        lora = folder.newest_lora(old.step, finished=old.step == old.total)
        begin = beginning_with(lora, old.config) if lora else ""
        raise UserError(
            f"cannot resume exactly, because something changed: {'; '.join(changed)}",
            file=folder.path,
            hint=f"undo that, or go on with new settings in another output_dir{begin and f', with {begin}'}",
        )
    needed = {**model.weights(), **({f"ema.{name}": one for name, one in ema.values.items()} if ema else {})}
    wrong = [name for name, one in needed.items() if name not in weights or weights[name].numel() != one.numel()]
    if wrong:
        raise UserError(
            f"the resume state has {len(wrong)} of {len(needed)} weights not, or in another size: {wrong[0]}",
            file=found,
            hint="start again in another output_dir",
        )
    for change in states.changes(old.environment, state.environment):
        sink(Note(f"note: since the run began, {change}: the last bits may differ"))
    if old.reads != state.reads and (long := _cut_off(state)):
        begun = f"a version that cut captions of more than {state.config['caption_tokens']} tokens off at a comma"
        sink(Note(f"note: the run began with {begun}; from here more of them is read: {listed(long, 3)}"))
    if length:
        sink(Note(f"note: {length}; the {old.step} steps that are done are those of a run of {state.total}"))
    elif old.step == old.total:
        sink(Note(f"note: all {old.total} steps are done; proof and report are made again"))
    state.step, state.losses, state.evaluations = old.step, old.losses, old.evaluations
    state.levels = old.levels if old.evaluations else state.levels
    state.smaller, state.scaler, state.optimizer = old.smaller, old.scaler, old.optimizer
    model.load(weights)
    if ema is not None:
        ema.load({name: weights[f"ema.{name}"] for name in ema.values})
    states.restore_optimizer(model.optimizer, moments, old.optimizer)
    if old.scaler and scaler.is_enabled():
        scaler.load_state_dict(old.scaler)
    folder.adopt(old.name, sink)


def _cut_off(state: RunState) -> list[str]:
    """The names of pictures of whose captions CLIP does not read the end."""
    return [name for name, text in state.captions.items() if cut(text, state.config["caption_tokens"])]


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names of what has another digest."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    # A state of an earlier version keeps that of a text encoder which is trained alone, and no config.json.
    names = [name for name in names if name in old or name not in ("text_encoder", CONFIG)]
    # Records that give the same tokens (other line ends, a key that is not read) are the same; others are told once.
    passed = _TOKENS if _RECORDS & set(names) and _TOKENS & set(names) else _RECORDS
    return [name for name in names if name not in passed]


def _changed(name: str, old: RunState, new: RunState) -> str:
    """What changed of a picture, or of what else has a digest: of a caption what it was and is."""
    before, after = old.captions.get(name), new.captions.get(name)
    if after is None or name not in old.data or before == after:
        return name
    if before is None:
        return f"{name} or its caption"  # a state of an earlier version keeps none
    pairs = enumerate(zip(before, after, strict=False))
    same = next((i for i, (one, other) in pairs if one != other), min(len(before), len(after)))
    before, after = (_from(text, same) for text in (before, after))
    return f'the caption of {name} ("{before}" -> "{after}")'


def _from(text: str, at: int) -> str:
    """What can be shown of a caption, so that the place `at` is in it."""
    start = at - 20 if at > 40 else 0
    return ("…" if start else "") + text[start : start + 60] + ("…" if len(text) > start + 60 else "")


def as_now(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a state as this version keeps it: an earlier one kept more, and knew fewer keys, which were then as
    they are by default."""
    defaults = {
        key: to_jsonable_python(field.get_default(call_default_factory=True))
        for key, field in TrainConfig.model_fields.items()
        if not field.is_required()
    }
    return {key: value for key, value in {**defaults, **kept}.items() if key not in FREE_KEYS}


def other_length(old: RunState, new: RunState, rates: Rates) -> str:
    """Why the steps of `old` would have been others in a run of `new`'s length; "": they would not."""
    done = old.step
    if new.total < done:
        return f"{done} steps are done, and that would be {new.total}"
    steps = range(done)
    step = next((s for s in steps if rates.share(s, old.total) != rates.share(s, new.total)), None)
    if step is not None:
        return f"lr_schedule: {rates.schedule} spans the whole run, so step {step + 1} would have had another rate"
    stop = old.config.get("token_stop")
    if stop is not None and min(done, stop_of(stop, old.total)) != min(done, stop_of(stop, new.total)):
        return f"token_stop: {stop:g} is a share of the run, so the new word would have rested at another step"
    return ""


def base_digests(config: TrainConfig, model: Model) -> dict[str, str]:
    """Of all that the frozen model was read from: SHA-256 of a file, or those of all files of a folder's parts."""
    of_parts, family = weights_in(config.base_model, model.family.facts.parts), model.family
    digests = {
        "base_model": model.base_digest or " ".join(model.files.digests[file] for file in of_parts),
        "vae": family.fingerprint("vae"),
    }
    if "language" in family.facts.features:
        digests["text_encoder"] = family.fingerprint("text")  # of files that may lie beside the base
    if model.training_adapter:
        digests["training_adapter"] = model.training_adapter
    return digests


def _digests(
    config: TrainConfig, model: Model, samples: Sequence[Sample], held_out: Sequence[Sample]
) -> dict[str, str]:
    digests, initial = base_digests(config, model), config.init_lora
    digests["init_lora"] = _digest_of_lora(initial) if initial else ""
    for s, name in [*_named(held_out, _ASIDE), *_named(samples)]:
        digests[name] = _digest(s)
        digests |= {f"reference {n} of {name}": one.digest for n, one in enumerate(s.references, 1)}
    return digests


def config_digest(folder: Path) -> str:
    """SHA-256 of what the config.json of a language model says."""
    said = json.loads((folder / "config.json").read_text("utf-8"))
    counts = {key: value for key, value in said.items() if key not in _OF_NO_STEP}
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()


def _digest_of_lora(path: Path) -> str:
    """SHA-256 of a file, or of the files of PEFT's folder."""
    files = [path / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)] if path.is_dir() else [path]
    return " ".join(model_hashes(file).sha256 for file in files)


def _named(samples: Sequence[Sample], suffix: str = "") -> list[tuple[Sample, str]]:
    return [(sample, sample.name + suffix) for sample in samples]


def _digest(sample: Sample) -> str:
    return hashlib.sha256(f"{sample.digest}{sample.caption}".encode()).hexdigest()


def _environment(device: torch.device, precision: str) -> dict[str, str]:
    # Another kind of card has other kernels, which add in another order.
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    return {"device": name, "precision": precision, "threads": str(torch.get_num_threads()), **versions()}


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    packages = ("torch", "diffusers", "transformers", "safetensors", "pillow", "peft")
    return {"lora-scripts": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
