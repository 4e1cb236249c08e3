"""The resume state: everything a run needs to go on exactly, as safetensors + JSON, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lora_scripts.errors import UserError


@dataclass
class RunState:
    """Where a run stands: after `step` optimizer steps."""

    step: int
    total: int
    config: dict[str, Any]
    """The keys that decide the weights; a resumed run must have the same."""
    data: dict[str, str]
    """Digests of the base model, the VAE, the LoRA it began with and every picture with its caption, by name."""
    environment: dict[str, str]
    """Thread count, versions, device: a change may change the last bits, and is told."""
    losses: list[float] = field(default_factory=list)
    """One for every step so far."""
    grad_scale: float | None = None
    """The loss scale of fp16."""


def pack(state: RunState, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, bytes]:
    """The files of a state folder: name -> content."""
    moments = optimizer.state_dict()["state"]
    flat = {f"{index}.{name}": value for index, entry in moments.items() for name, value in entry.items()}
    return {
        "run.json": json.dumps(asdict(state), indent=1).encode(),
        "lora.safetensors": _save(weights),
        "optimizer.safetensors": _save(flat),
    }


def unpack(folder: Path) -> tuple[RunState, dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """What `pack` was given, tensors on the CPU; UserError if the folder is not whole."""
    try:
        state = RunState(**json.loads((folder / "run.json").read_text("utf-8")))
        weights = safetensors.torch.load_file(folder / "lora.safetensors")
        flat = safetensors.torch.load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as e:
        raise UserError(
            f"the resume state cannot be read ({e})", file=folder, hint="start again in another output_dir"
        ) from None
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    return state, weights, moments


def restore_optimizer(optimizer: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Puts the moments back; learning rates are a function of the step and need no restoring."""
    state = optimizer.state_dict()
    state["state"] = {index: dict(entry) for index, entry in moments.items()}
    optimizer.load_state_dict(state)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """ "key: old -> new" for every key that differs."""
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]


def _save(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
