"""What headers and configs alone tell of a checkpoint or a diffusers folder, for every family of the kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_scripts.dtypes import FLOATS
from lora_scripts.errors import UserError
from lora_scripts.families.sd.rows import Shapes, scale_key
from lora_scripts.families.sd.vae import FACTOR
from lora_scripts.formats.header import Header, read_header


def check_floats(path: Path, header: Header, prefixes: tuple[str, ...], tolerated: Callable[[str], bool]) -> None:
    """UserError when a tensor that is read is no floating-point number."""
    odd = [
        (name, info.dtype)
        for name, info in header.tensors.items()
        if name.startswith(prefixes) and info.dtype not in FLOATS and not tolerated(name)
    ]
    if odd:
        first = f"{len(odd)} tensors are not floating point, first {odd[0][0]} ({odd[0][1]})"
        raise UserError(first, file=path, hint="this is a quantised file; give the fp32, fp16 or bf16 version")


def refuse_scales(path: Path, header: Header) -> None:
    """UserError for a file whose weights are numbers times a scale: nothing can be added to such a number."""
    scaled = [key for key in header.tensors if scale_key(key, header.tensors) is not None]
    if scaled:
        text = f"{len(scaled)} weights have a scale beside them (fp8_scaled, int8), first {scaled[0]}"
        raise UserError(text, file=path, hint="it can be trained on; here give the fp32, fp16 or bf16 version")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any] | None:
    """A component's config; None where there is none that can be read."""
    try:
        values = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def index_of(path: Path) -> dict[str, Any]:
    """What a diffusers folder says of its pipeline; {} where there is none."""
    return read_config(path, "model_index.json") or {}


V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors by which a file says that it answers with v, and that its noise schedule ends in pure noise."""


def scheduler_of(path: Path) -> dict[str, Any]:
    """The scheduler's config of a diffusers folder; {} where there is none."""
    return read_config(path / "scheduler", "scheduler_config.json") or {}


def said(path: Path) -> tuple[str, bool]:
    """("epsilon", "v", or "" where a base does not say; whether it says that its schedule ends in pure noise).

    A single file says it by empty tensors, `v_pred` and `ztsnr`, or in its ModelSpec; a folder in its scheduler's
    config.
    """
    if path.is_dir():
        scheduler = scheduler_of(path)
        word, zero = str(scheduler.get("prediction_type", "")), scheduler.get("rescale_betas_zero_snr") is True
    else:
        header = read_header(path)
        word = "v" if V_PREDICTION in header.tensors else header.metadata.get("modelspec.prediction_type", "").lower()
        zero = ZERO_SNR in header.tensors
    word = "v" if word in ("v", "v_prediction", "v-prediction") else word
    return word if word in ("v", "epsilon") else "", zero


def told(path: Path) -> dict[str, Any]:
    """As `Facts.told`: what a base answers with, and whether its schedule ends in pure noise. One that says nothing is
    as the first of them was: epsilon."""
    word, zero = said(path)
    return {"prediction": word or "epsilon", "zero_terminal_snr": word == "v" and zero}


def native_size(metadata: Mapping[str, str], usual: tuple[int, int]) -> tuple[int, int]:
    """(width, height) from ModelSpec's "512x512"; the family's usual size where the file does not say."""
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", metadata.get("modelspec.resolution", ""))
    return (int(match[1]), int(match[2])) if match else usual


def size_made_for(path: Path, usual: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels of the pictures that a checkpoint, or a diffusers folder, was made for."""
    if path.is_file():
        return native_size(read_header(path).metadata, usual)
    side = (read_config(path / "unet") or {}).get("sample_size")
    return (side * FACTOR, side * FACTOR) if isinstance(side, int) else usual


def require_parts(path: Path, parts: Sequence[str], words: str) -> None:
    """UserError unless the diffusers folder of a family, called `words`, has these parts."""
    missing = [f"{part}/config.json" for part in parts if not (path / part / "config.json").is_file()]
    if missing:
        hint = f"give a diffusers folder of {words}, or a single .safetensors file"
        raise UserError(f"this folder has no {', '.join(missing)}", file=path, hint=hint)


def require_models(shapes: Shapes, parts: Mapping[str, str], file: Path | None) -> None:
    """UserError unless a single file has every part; `parts`: what people call it -> what its keys begin with."""
    absent = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in shapes)]
    if absent:
        hint = "give the full checkpoint" + (", or the file of a VAE as vae" if absent == ["VAE"] else "")
        raise UserError(f"the file holds no {' and no '.join(absent)}", file=file, hint=hint)
