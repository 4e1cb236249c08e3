"""The resume state: everything a run needs to go on exactly, as safetensors + JSON, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lora_scripts.errors import UserError
from lora_scripts.formats.io import Buffer, safetensors_parts
from lora_scripts.formats.manifest import damage, with_manifest


@dataclass
class RunState:
    """Where a run stands: after `step` optimizer steps."""

    step: int
    total: int
    config: dict[str, Any]
    """The keys that decide the weights; a resumed run must have the same."""
    data: dict[str, str]
    """Digests of the base model, the VAE, the text encoder where that may lie beside it, the LoRA it began with, every
    picture with its caption and every mask, by name."""
    environment: dict[str, str]
    """Thread count, versions, device: a change may change the last bits, and is told."""
    losses: list[float] = field(default_factory=list)
    """One for every step so far."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """What was measured so far; each the fields of an `evidence.Evaluation`."""
    levels: list[int] = field(default_factory=list)
    """Noise levels at which it was, of held-out pictures and of training pictures; empty in states of earlier versions,
    which knew the usual ones alone, and of language models."""
    smaller: list[list[int]] = field(default_factory=list)
    """[step, most]: after so many steps memory ran out, and from there batches come in pieces of at most so many."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The loss scale of fp16 and when it grows next; empty otherwise."""
    captions: dict[str, str] = field(default_factory=dict)
    """Of every picture, by name: to say which of the two has changed; empty in states of earlier versions, and of
    language models."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """What the optimizer keeps in plain numbers, by "index.name" of a parameter and "group.index.name"."""

    name: str = ""
    """By which the run saves LoRAs, that of its folder; empty in states of earlier versions."""
    reads: str = ""
    """How captions that CLIP reads are cut off; empty in states of earlier versions, and of models without CLIP."""

    @property
    def versions(self) -> dict[str, str]:
        """Of the environment: the program, and what it is made of."""
        return {name: what for name, what in self.environment.items() if name not in ("device", "precision", "threads")}


def pack(state: RunState, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, list[Buffer]]:
    """The files of a state folder: name -> content, in pieces that are the tensors' own memory where they are on the
    CPU: to be written before the next step."""
    kept = optimizer.state_dict()
    flat = {f"{index}.{name}": value for index, entry in kept["state"].items() for name, value in entry.items()}
    # In an order of their own: a resumed optimizer may have them in another than one that began.
    tensors = {key: value for key, value in sorted(flat.items()) if isinstance(value, Tensor)}
    numbers = {key: value for key, value in sorted(flat.items()) if key not in tensors}
    for index, group in enumerate(kept["param_groups"]):
        numbers |= {f"group.{index}.{name}": v for name, v in group.items() if name not in _OURS and _plain(v)}
    files: dict[str, list[Buffer]] = {
        "run.json": [json.dumps(asdict(replace(state, optimizer=numbers)), indent=1).encode()],
        "lora.safetensors": _save(weights),
        "optimizer.safetensors": _save(tensors),
    }
    return with_manifest(files)


_TENSORS = ("lora", "optimizer")
# Set by the config and the step, so never restored.
_OURS = ("params", "lr", "peak", "name", "weight_decay", "start", "stop")


def _plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def unpack(folder: Path) -> tuple[RunState, dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """What `pack` was given, tensors on the CPU; UserError if the folder is not as it was written."""
    try:
        if damaged := damage(folder):
            raise ValueError(damaged)
        state = RunState(**json.loads((folder / "run.json").read_text("utf-8")))
        # Read, not mapped: the optimizer keeps what it is given, and Windows removes no file that is mapped.
        weights, flat = (safetensors.torch.load((folder / f"{name}.safetensors").read_bytes()) for name in _TENSORS)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as e:
        raise UserError(
            f"the resume state cannot be read ({e})", file=folder, hint="start again in another output_dir"
        ) from None
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    return state, weights, moments


def restore_optimizer(
    optimizer: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Tensor]], numbers: Mapping[str, Any]
) -> None:
    """Puts tensors and numbers back; learning rates are a function of the step and need no restoring."""
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Any]] = {index: dict(entry) for index, entry in moments.items()}
    for key, value in numbers.items():
        index, _, name = key.removeprefix("group.").partition(".")
        if key.startswith("group."):
            state["param_groups"][int(index)][name] = value
        else:
            entries.setdefault(int(index), {})[name] = value
    state["state"] = entries
    optimizer.load_state_dict(state)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """ "key: old -> new" for every key that differs."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key}: {_told(old.get(key))} -> {_told(new.get(key))}" for key in keys]


def _told(value: object) -> str:
    """As a config has it."""
    return "not written" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _save(tensors: Mapping[str, Tensor]) -> list[Buffer]:
    header, buffers = safetensors_parts(tensors)
    return [header, *buffers]
