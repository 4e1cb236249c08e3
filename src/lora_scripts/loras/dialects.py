"""One LoRA in the four ways that it is written: dict -> dict by the tables of `names.py`. Nothing here touches files.

Alpha. kohya's files hold it as a tensor, PEFT in `adapter_config.json`. diffusers' keys have no place for it and their
readers take alpha = rank, so it is folded: up' = (alpha / rank) · up. What alpha was stands in the metadata
(`lora_scripts.alpha`), and the way back divides by the same number. In float32 both steps are exact when alpha / rank
is a power of two, so such a file comes back bit for bit; of any other scale the last bit may differ (`Folded.exact`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights, check
from lora_scripts.config.values import did_you_mean
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.names import PEFT_PREFIX, Half, Names
from lora_scripts.loras import kohya
from lora_scripts.loras.naming import Naming

ALPHA_KEY = "lora_scripts.alpha"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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


def read(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    naming: Naming,
    names: Names,
    *,
    file: Path | None = None,
) -> dict[str, LoraWeights]:
    """Our module path -> weights, of a file with kohya's, the original or diffusers' names. A DoRA is read too.

    UserErrors for unknown keys, halves without the other half, shapes that do not fit, values that are not finite.
    """
    if naming is Naming.DIFFUSERS:
        return from_diffusers(tensors, metadata, names, file=file)
    table = names.original if naming is Naming.ORIGINAL else names.kohya
    return kohya.from_kohya(tensors, file=file, table=table, dora=True)


def to_diffusers(modules: Modules, names: Names, dtype: torch.dtype) -> Folded:
    """Folds alpha into `up`; see above. UserError for a DoRA, whose magnitudes diffusers would drop."""
    _refuse_dora(modules, "diffusers")
    tensors, exact = {}, True
    for path, w in modules.items():
        scale = w.alpha / w.rank
        folded = (w.up.double() * scale).to(dtype)
        exact = exact and bool((folded.double() == w.up.double() * scale).all())
        stem = names.diffusers[path]
        tensors[f"{stem}.lora_A.weight"] = w.down.to(dtype).contiguous()
        tensors[f"{stem}.lora_B.weight"] = folded.contiguous()
    alphas = {path: w.alpha for path, w in modules.items()}
    told = next(iter(alphas.values())) if len(set(alphas.values())) == 1 else alphas
    return Folded(tensors, {ALPHA_KEY: json.dumps(told)}, exact)


def from_diffusers(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], names: Names, *, file: Path | None = None
) -> dict[str, LoraWeights]:
    """Weights with the alpha that the metadata tells, else alpha = rank. All faults at once, as UserErrors."""
    parts = _collect(tensors, names.diffusers_keys, file)
    alphas = _told_alphas(metadata, file)
    modules = {}
    for path, halves in parts.items():
        if "alpha" in halves:
            modules[path] = LoraWeights(halves["down"], halves["up"], float(halves["alpha"].item()))
            continue
        rank = halves["down"].shape[0]
        alpha = alphas.get(path, 0.0) if isinstance(alphas, Mapping) else alphas
        scale = (alpha or rank) / rank
        up = halves["up"] if scale == 1 else (halves["up"].double() / scale).to(halves["up"].dtype)
        modules[path] = LoraWeights(halves["down"], up, alpha or float(rank))
    return modules


def to_peft(modules: Modules, *, flat_text: bool, dtype: torch.dtype | None = None) -> dict[str, Adapter]:
    """Part -> adapter. Ranks and alphas that differ go into `rank_pattern` and `alpha_pattern`; nothing is rescaled.

    `flat_text`: whether the text encoder's layers are named without `text_model.`, as from transformers 5.6 on.
    UserError for a DoRA: PEFT's has a length for every row of the weight, kohya's for every column.
    """
    _refuse_dora(modules, "PEFT")
    parts: dict[str, dict[str, LoraWeights]] = {}
    for path, w in modules.items():
        part, _, inner = path.partition(".")
        inner = inner if flat_text or part == "unet" else f"text_model.{inner}"
        parts.setdefault(part, {})[inner] = w
    return {part: Adapter(_peft_tensors(found, dtype), _peft_config(found)) for part, found in parts.items()}


def from_peft(
    adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], names: Names, *, file: Path | None = None
) -> dict[str, LoraWeights]:
    """Weights of PEFT adapters; `adapters` is part -> (tensors, adapter_config). UserErrors, all faults at once."""
    modules = {}
    for part, (tensors, config) in adapters.items():
        _check_config(config, file)
        table: dict[str, tuple[str, Half]] = {}
        for path, stem in names.diffusers.items():
            if path.startswith(part + "."):
                for inner in {path.removeprefix(part + "."), stem.removeprefix(part + ".")}:
                    for half, leaf in (("down", "lora_A"), ("up", "lora_B")):
                        table[f"{PEFT_PREFIX}{inner}.{leaf}.weight"] = path, half  # type: ignore[assignment]
        for path, halves in _collect(tensors, table, file).items():
            inner, rank = path.removeprefix(part + "."), halves["down"].shape[0]
            alpha = float(_pattern(config.get("alpha_pattern") or {}, inner, config.get("lora_alpha", rank)))
            # rsLoRA (Kalajdzievski 2023): alpha over the root of the rank.
            alpha = alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
            modules[path] = LoraWeights(halves["down"], halves["up"], alpha)
    return modules


def part_of(keys: Mapping[str, object]) -> str:
    """Which part a single PEFT adapter is for: "unet" or "text_encoder"."""
    return "text_encoder" if any(".encoder.layers." in key or ".layers." in key for key in keys) else "unet"


def cast(modules: Modules, dtype: torch.dtype) -> dict[str, LoraWeights]:
    """The same modules in another dtype; `precision.py` tells what that costs."""
    return {
        path: replace(w, down=w.down.to(dtype), up=w.up.to(dtype), dora=None if w.dora is None else w.dora.to(dtype))
        for path, w in modules.items()
    }


def _peft_tensors(modules: Modules, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = {}
    for inner, w in modules.items():
        tensors[f"{PEFT_PREFIX}{inner}.lora_A.weight"] = w.down.to(dtype or w.down.dtype).contiguous()
        tensors[f"{PEFT_PREFIX}{inner}.lora_B.weight"] = w.up.to(dtype or w.up.dtype).contiguous()
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
        "use_dora": False,
        "target_modules": sorted(modules),
        "rank_pattern": {f"^{inner}": w.rank for inner, w in modules.items() if w.rank != rank},
        "alpha_pattern": {f"^{inner}": w.alpha for inner, w in modules.items() if w.alpha != alpha},
    }


def _pattern(patterns: Mapping[str, Any], inner: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the path or its end; `^` at the start means the whole path."""
    for pattern, value in patterns.items():
        whole = pattern.removeprefix("^").removesuffix("$")
        if inner == whole or (not pattern.startswith("^") and inner.endswith("." + whole)):
            return value
        if inner == whole.removeprefix("text_model."):
            return value
    return default


def _check_config(config: Mapping[str, Any], file: Path | None) -> None:
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        what = "a DoRA" if config.get("use_dora") else f"of type {config.get('peft_type')}"
        raise UserError(f"the adapter is {what}, not a plain LoRA", file=file, hint="merge it with PEFT instead")
    if config.get("lora_bias") or config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise UserError(
            "the adapter trains biases or whole layers too, which no LoRA file holds",
            file=file,
            hint="merge it instead",
        )


def _collect(
    tensors: Mapping[str, Tensor], table: Mapping[str, tuple[str, Half]], file: Path | None
) -> dict[str, dict[Half, Tensor]]:
    """Path -> its halves, each checked; UserErrors for every fault, at most ten."""
    parts: dict[str, dict[Half, Tensor]] = {}
    errors = []
    for key, tensor in tensors.items():
        if key not in table:
            near = did_you_mean(key, table)
            hint = f"the nearest known one is {near}" if near else "this is not a LoRA of Stable Diffusion 1.x"
            errors.append(UserError(f"unknown key {ascii(key)[1:-1][:160]}", file=file, hint=hint))
            if len(errors) == 10:
                break
            continue
        path, half = table[key]
        parts.setdefault(path, {})[half] = tensor
    errors += [
        UserError(f"{path} has no {half} matrix", file=file, hint="the file is incomplete; get the original one")
        for path, halves in parts.items()
        for half in ("down", "up")
        if half not in halves
    ]
    if not tensors:
        errors.append(UserError("the file holds no tensors", file=file, hint="give another file"))
    raise_all(errors[:10])
    for path, halves in parts.items():
        try:
            check(path, LoraWeights(halves["down"], halves["up"], 1.0))
        except UserError as error:
            errors.append(UserError(error.message, file=file, hint=error.hint))
    raise_all(errors[:10])
    return parts


def _told_alphas(metadata: Mapping[str, str], file: Path | None) -> float | dict[str, float]:
    """0 where the file does not say."""
    text = metadata.get(ALPHA_KEY)
    if text is None:
        return 0.0
    try:
        told = json.loads(text)
        if isinstance(told, dict):
            return {str(path): float(alpha) for path, alpha in told.items()}
        return float(told)
    except (ValueError, TypeError):
        raise UserError(
            f"the metadata {ALPHA_KEY} is not readable", file=file, hint=f"take it out: metadata --set {ALPHA_KEY}="
        ) from None


def _refuse_dora(modules: Modules, consumer: str) -> None:
    found = [path for path, w in modules.items() if w.dora is not None]
    if found:
        raise UserError(
            f"{len(found)} modules are DoRA (first {found[0]}), which {consumer} cannot hold",
            hint="bake them to plain LoRA: --bake-dora --base CHECKPOINT",
        )
