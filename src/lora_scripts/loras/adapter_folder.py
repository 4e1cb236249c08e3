"""A LoRA of a language model as PEFT keeps it: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.formats import io
from lora_scripts.loras import dialects
from lora_scripts.loras.file import ADAPTER_CONFIG, ADAPTER_WEIGHTS

TEMPLATE = "chat_template.jinja"
"""The chat template that a LoRA was trained with."""


def files_of(
    weights: Mapping[str, LoraWeights],
    dtype: torch.dtype,
    *,
    base: str,
    layers: Iterable[str] = (),
    transposed: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, io.Data]:
    """Name -> content of an adapter's files. `weights` by our paths, "lm.model.layers.0…".

    `layers` are all paths that a LoRA could go onto: where the trained ones are all that end alike, the config names
    the ends ("q_proj"), as people write them. `transposed`: the model's weights lie [in, out] in its files.
    """
    (part,) = {path.partition(".")[0] for path in weights}
    adapter = dialects.to_peft(weights, {}, dtype)[part]
    own = {path.partition(".")[2] for path in weights}
    config = adapter.config | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "fan_in_fan_out": transposed,
        "target_modules": _ends(own, {path.partition(".")[2] for path in layers}) or sorted(own),
    }
    header, tensors = io.safetensors_parts(adapter.tensors, {"format": "pt", **(metadata or {})})
    return {
        ADAPTER_CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        ADAPTER_WEIGHTS: [header, *tensors],
    }


def like(
    origin: Path, weights: Mapping[str, LoraWeights], dtype: torch.dtype, metadata: Mapping[str, str]
) -> dict[str, io.Data]:
    """As `files_of`, of a LoRA that was made from `origin`: another one, or a base. Of the metadata only ours counts:
    the rest are words of kohya's tools."""
    own = {key: value for key, value in metadata.items() if key.startswith("lora_scripts")}
    told = config_of(origin) if (origin / ADAPTER_CONFIG).is_file() else {"base_model_name_or_path": str(origin)}
    files = files_of(
        weights,
        dtype,
        base=str(told.get("base_model_name_or_path") or ""),
        transposed=bool(told.get("fan_in_fan_out")),
        metadata=own,
    )
    template = origin / TEMPLATE
    return files | {TEMPLATE: template.read_bytes()} if template.is_file() else files


def write(path: Path, files: Mapping[str, io.Data]) -> None:
    """The folder, whole or not at all. UserError as `io.write_folder`."""
    io.write_folder(path, files)


def _ends(own: set[str], layers: set[str]) -> list[str]:
    """The last words of the names, if they name those and no other layer."""
    ends = Counter(name.rpartition(".")[2] for name in own)
    return sorted(ends) if own == {name for name in layers if name.rpartition(".")[2] in ends} else []


def config_of(path: Path) -> dict[str, Any]:
    """adapter_config.json of a folder."""
    value: dict[str, Any] = json.loads((path / ADAPTER_CONFIG).read_text("utf-8"))
    return value
