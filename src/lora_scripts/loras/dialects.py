"""A LoRA with the keys of diffusers and of PEFT: dict -> dict by the tables of the family. Nothing here touches files;
kohya's keys are `kohya.py`, reading is `reading.py`.

Alpha. kohya's files hold it as a tensor, PEFT in `adapter_config.json`. diffusers' keys have no place for it and their
readers take alpha = rank, so it is folded: up' = (alpha / rank) · up. What alpha was stands in the metadata
(`lora_scripts.alpha`), and the way back divides by the same number. In float32 both steps are exact when alpha / rank
is a power of two, so such a file comes back bit for bit; of any other scale the last bit may differ (`Folded.exact`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights, finite, uniform
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.names import Names
from lora_scripts.loras import kohya
from lora_scripts.loras.alphas import ALPHA_KEY
from lora_scripts.loras.naming import MAGNITUDE, PEFT_PREFIX

Modules = Mapping[str, LoraWeights]


@dataclass(frozen=True)
class Folded:
    """A LoRA with diffusers' names."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    """What the way back needs."""
    exact: bool
    """Whether no bit was lost by the folding."""


@dataclass(frozen=True)
class Adapter:
    """One part of a LoRA ("unet", "text_encoder") as PEFT keeps it."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    """`adapter_config.json`"""


def own_form(modules: Modules, names: Names, dtype: torch.dtype) -> Folded:
    """A LoRA in the names that our own files of a family have: those that the most programs read right.

    One rank and one alpha for all. A DoRA keeps kohya's leaves under any names, its lengths among them. UserError for a
    module without a name, and for values that are not finite in `dtype`.
    """
    if names.form == "kohya" or any(w.dora is not None for w in modules.values()):
        return Folded(kohya.to_kohya(modules, {**names.written, **names.untrained}, dtype=dtype), {}, True)
    return to_diffusers(uniform(modules), names, dtype)


def to_diffusers(modules: Modules, names: Names, dtype: torch.dtype) -> Folded:
    """Folds alpha into `up`; see above. UserError for a DoRA, whose magnitudes diffusers would drop, and for values
    that are not finite in `dtype`."""
    _refuse_dora(modules, "diffusers")
    kohya.check_named(modules, names.diffusers, "diffusers")
    tensors, exact = {}, True
    for path, w in modules.items():
        scale = w.alpha / w.rank
        folded = (w.up.double() * scale).to(dtype)
        exact = exact and bool((folded.double() == w.up.double() * scale).all())
        stem = names.diffusers[path]
        tensors[f"{stem}.lora_A.weight"] = w.down.to(dtype).contiguous()
        tensors[f"{stem}.lora_B.weight"] = folded.contiguous()
    odd = [key for key, tensor in tensors.items() if not finite(tensor)]
    raise_all([kohya.not_finite(key, dtype) for key in odd[:10]])
    alphas = {path: w.alpha for path, w in modules.items()}
    told = next(iter(alphas.values())) if len(set(alphas.values())) == 1 else alphas
    return Folded(tensors, {ALPHA_KEY: json.dumps(told)}, exact)


def to_peft(modules: Modules, prefixes: Mapping[str, str], dtype: torch.dtype | None = None) -> dict[str, Adapter]:
    """Part -> adapter. Ranks and alphas that differ go into `rank_pattern` and `alpha_pattern`; nothing is rescaled.

    `prefixes`: of each part, what its layers' paths begin with in the installed libraries (`Facts.wrapped`).
    UserError for a DoRA unless all of it is one with a length for every row of the weight: kohya's has them for every
    column.
    """
    if not all(w.by_output for w in modules.values()):
        _refuse_dora(modules, "PEFT")
    parts: dict[str, dict[str, LoraWeights]] = {}
    for path, w in modules.items():
        part, _, inner = path.partition(".")
        parts.setdefault(part, {})[prefixes.get(part, "") + inner] = w
    return {part: Adapter(_peft_tensors(own, dtype), _peft_config(own)) for part, own in parts.items()}


def _peft_tensors(modules: Modules, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = {}
    for inner, w in modules.items():
        tensors[f"{PEFT_PREFIX}{inner}.lora_A.weight"] = w.down.to(dtype or w.down.dtype).contiguous()
        tensors[f"{PEFT_PREFIX}{inner}.lora_B.weight"] = w.up.to(dtype or w.up.dtype).contiguous()
        if w.dora is not None:  # in float32, as its digits count
            lengths = w.dora.flatten() if w.down.dim() == 2 else w.dora.transpose(0, 1)
            tensors[f"{PEFT_PREFIX}{inner}.{MAGNITUDE}"] = lengths.float().contiguous()
    return tensors


def _peft_config(modules: Modules) -> dict[str, Any]:
    """The keys of PEFT's LoraConfig that say how the tensors are to be read; all others keep their defaults."""
    rank = Counter(w.rank for w in modules.values()).most_common(1)[0][0]
    alpha = Counter(w.alpha for w in modules.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": any(w.dora is not None for w in modules.values()),
        "target_modules": sorted(modules),
        "rank_pattern": {f"^{inner}": w.rank for inner, w in modules.items() if w.rank != rank},
        "alpha_pattern": {f"^{inner}": w.alpha for inner, w in modules.items() if w.alpha != alpha},
    }


def _refuse_dora(modules: Modules, consumer: str) -> None:
    doras = [path for path, w in modules.items() if w.dora is not None]
    if doras:
        raise UserError(
            f"{len(doras)} modules are DoRA (first {doras[0]}), which {consumer} cannot hold",
            hint="make plain LoRAs of them: add --bake-dora --base CHECKPOINT",
        )
