"""LoRA files: the one writer, which proves what it wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError
from lora_scripts.families.facts import Facts
from lora_scripts.loras import adapter_folder, dialects, reading
from lora_scripts.loras.file import LoraFile, plain, read, save
from lora_scripts.units import percent


def write(
    path: Path,
    family: Facts,
    weights: Mapping[str, LoraWeights],
    dtype: torch.dtype,
    values: Mapping[str, str],
    origin: Path,
) -> tuple[LoraFile, float]:
    """Writes a LoRA in the family's own form, or as PEFT does where the family's are folders, and proves it: (the LoRA
    as read again from the disk, |rounding| / |ΔW|).

    `weights` have one rank and one alpha (`uniform`). Of `origin`, a LoRA or a base, a folder takes what it says of
    base and chat template. UserError, with nothing written, when `dtype` cannot hold them or would lose more of ΔW
    than its digits say.
    """
    if family.lora.folder:
        rounded = {n: LoraWeights(w.down.to(dtype), w.up.to(dtype), w.alpha) for n, w in weights.items()}
    else:
        names = family.names()
        form = dialects.own_form(weights, names, dtype)
        tensors, values = form.tensors, {**values, **form.metadata}
        rounded = plain(reading.read(tensors, names, metadata=values))
    pairs = [(factors.of(weights[name]), factors.of(rounded[name])) for name in weights]
    size = math.hypot(*(factors.norm(meant) for meant, _ in pairs))
    off = math.hypot(*(factors.distance(meant, there) for meant, there in pairs)) / size if size else 0.0
    if off > 8 * torch.finfo(dtype).eps:
        text = f"{str(dtype).removeprefix('torch.')} would change ΔW by {percent(off, 1)}"
        raise UserError(text, file=path, hint="write it with --precision fp32")
    if family.lora.folder:
        adapter_folder.write(path, adapter_folder.like(origin, weights, dtype, values))
    else:
        save(path, tensors, values)
    written = read(path)
    same = written.weights.keys() == rounded.keys() and all(
        torch.equal(w.up, rounded[n].up) and torch.equal(w.down, rounded[n].down) and w.alpha == rounded[n].alpha
        for n, w in written.weights.items()
    )
    if not same:
        hint = "check the disk, and write it again"
        raise UserError("the file does not read back as it was written", file=path, hint=hint)
    return written, off
