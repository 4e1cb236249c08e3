"""Going on exactly where a run stopped: what must be the same, what is told, what is put back."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lora_scripts import __version__
from lora_scripts.errors import UserError
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.train import state as states
from lora_scripts.train.state import RunState

if TYPE_CHECKING:
    from lora_scripts.run.story import Run

# A resumed run may change these: they decide what is shown and kept, or are held against the data by their content.
FREE_KEYS = {
    *("train_data_dir", "metadata_path", "base_model", "vae", "init_lora", "output_dir", "cache_dir", "device"),
    *("val_data_dir", "val_every", "patience"),
    *("gradient_checkpointing", "offload_blocks"),  # the same numbers, computed or brought another way
    *("save_steps", "keep_last", "save_precision", "metadata_captions"),
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
    ),
}


def new_state(run: Run) -> RunState:
    """The state of a run before its first step."""
    kept = run.config.model_dump(mode="json", exclude=FREE_KEYS)
    kept["lora_rank"] = run.model.rank  # of init_lora, where it is not written
    return RunState(0, run.total, kept, _data_digests(run), _environment(run))


def restore(run: Run, found: Path | None) -> None:
    """Puts the state in folder `found` back. UserError, naming all of it, if what decides the weights has changed."""
    if found is None:
        return
    old, weights, moments = states.unpack(found)
    told = states.changes(old.config, run.state.config)
    new = run.state.data
    changed = [name for name in {**old.data, **new} if old.data.get(name) != new.get(name)]
    if changed:
        told.append(", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else ""))
    if told:
        raise UserError(
            f"cannot resume exactly, because something changed: {'; '.join(told)}",
            file=run.folder.path,
            hint="undo that, or start a new output_dir with init_lora to go on with new settings",
        )
    for change in states.changes(old.environment, run.state.environment):
        print(f"note: since the run began, {change}: the last bits may differ", flush=True)
    old.environment = run.state.environment
    run.state = old
    run.model.load(weights)
    if run.ema is not None:
        run.ema.load({name: weights[f"ema.{name}"] for name in run.ema.values})
    states.restore_optimizer(run.model.optimizer, moments, old.optimizer)
    if old.scaler and run.scaler.is_enabled():
        run.scaler.load_state_dict(old.scaler)


def _data_digests(run: Run) -> dict[str, str]:
    base, initial = run.config.base_model, run.config.init_lora
    parts = [f for part in ("unet", "text_encoder") for f in sorted((base / part).glob("*.safetensors"))]
    digests = {
        "base_model": run.model.base_digest or " ".join(model_hashes(f).sha256 for f in parts),
        "vae": run.model.family.fingerprint("vae"),
        "init_lora": model_hashes(initial).sha256 if initial else "",
    }
    for s in run.held_out:
        digests[f"{s.name} (held out)"] = hashlib.sha256(f"{s.digest}{s.caption}".encode()).hexdigest()
    for s in (picture.sample for picture in run.feed.pictures):
        digests[s.name] = hashlib.sha256(f"{s.digest}{s.caption}".encode()).hexdigest()
    return digests


def _environment(run: Run) -> dict[str, str]:
    return {
        "device": str(run.device),
        "precision": run.precision,
        "threads": str(torch.get_num_threads()),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    packages = ("torch", "diffusers", "transformers", "safetensors", "pillow", "peft")
    return {"lora-scripts": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
