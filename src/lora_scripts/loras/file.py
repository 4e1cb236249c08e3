"""LoRA files as building blocks: read with all that the file says of itself, written with all that made them, and read
again before anybody is told that they are done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError
from lora_scripts.families.facts import Facts
from lora_scripts.families.table import of_lora, require_lora
from lora_scripts.formats import header, io
from lora_scripts.formats.hashes import model_hashes, with_hashes

if TYPE_CHECKING:
    import torch

    from lora_scripts.adapters.weights import LoraWeights

MADE_BY, MADE_FROM = "lora_scripts.made_by", "lora_scripts.made_from"


@dataclass(frozen=True)
class LoraFile:
    """One LoRA as it lies on the disk."""

    path: Path
    family: Facts
    weights: dict[str, LoraWeights]
    """By our module path, in the file's own dtype."""
    metadata: dict[str, str]
    sha256: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def rank(self) -> int:
        """The largest one in it."""
        return max(w.rank for w in self.weights.values())


@dataclass(frozen=True)
class Source:
    """One file that another was made from, as the metadata names it."""

    name: str
    sha256: str
    weight: float | None = None


def family_of(path: Path) -> Facts:
    """The family of a LoRA file, told by its header; torch is not needed. UserError when it is no LoRA."""
    require_lora(path)
    family = of_lora({key.partition(".")[0] for key in header.read_header(path).tensors})
    if family is None:
        raise UserError("names no layer of a model that is known here", file=path, hint="convert it to kohya's names")
    return family


def read(path: Path) -> LoraFile:
    """Reads a LoRA file, whole. UserError for another file, for unknown keys and for spoilt values."""
    import safetensors.torch

    from lora_scripts.loras import kohya

    family = family_of(path)
    weights = kohya.from_kohya(safetensors.torch.load_file(path), file=path, table=family.names().kohya)
    if not any(bool(w.up.any()) and bool(w.down.any()) and w.alpha for w in weights.values()):
        raise UserError("this LoRA changes no weight: all of it is zero", file=path, hint="take another file")
    return LoraFile(path, family, weights, header.read_header(path).metadata, model_hashes(path).sha256)


def new_metadata(
    family: Facts, name: str, *, rank: int, alpha: float, conv: bool, made_by: str, sources: Sequence[Source]
) -> dict[str, str]:
    """The least set that the tools want of a LoRA, with what it was made from; sorted, every value a string."""
    args = {"conv_dim": rank, "conv_alpha": alpha} if conv else {}
    values = {
        "ss_v2": "False",
        "ss_base_model_version": family.lora.base_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(args),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.lora.architecture,
        "modelspec.implementation": family.lora.implementation,
        "modelspec.title": name,
    }
    if len(sources) > 1:
        values["modelspec.merged_from"] = ", ".join(Path(source.name).stem for source in sources)
    return dict(sorted((values | made_from(made_by, sources)).items()))


def made_from(made_by: str, sources: Iterable[Source]) -> dict[str, str]:
    """Our own two keys: the command with its settings, and the files with their SHA-256 and weights."""
    rows = [{key: value for key, value in vars(source).items() if value is not None} for source in sources]
    return {MADE_BY: made_by, MADE_FROM: json.dumps(rows, ensure_ascii=False)}


def shared_metadata(files: Sequence[LoraFile]) -> dict[str, str]:
    """What all files say alike of their base, their resolution and how they are used."""
    keys = (
        "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_clip_skip", "ss_resolution",
        "modelspec.resolution", "modelspec.prediction_type", "modelspec.encoder_layer",
    )  # fmt: skip
    first = files[0].metadata
    return {k: first[k] for k in keys if k in first and all(f.metadata.get(k) == first[k] for f in files)}


def write(
    path: Path, family: Facts, weights: Mapping[str, LoraWeights], dtype: torch.dtype, values: Mapping[str, str]
) -> tuple[LoraFile, float]:
    """Writes a LoRA as kohya's tools do, and proves it: (the file as read again from the disk, |rounding| / |ΔW|).

    `weights` have one rank and one alpha (`kohya.uniform`). UserError, with nothing written, when `dtype` cannot hold
    them or would lose more of ΔW than its digits say.
    """
    import torch

    from lora_scripts.adapters.algebra import factors
    from lora_scripts.loras import kohya

    tensors = kohya.to_kohya(weights, dtype=dtype, table=family.names().kohya)
    rounded = kohya.from_kohya(tensors, table=family.names().kohya)
    pairs = [(factors.of(weights[name]), factors.of(rounded[name])) for name in weights]
    size = math.hypot(*(factors.norm(meant) for meant, _ in pairs))
    off = math.hypot(*(factors.distance(meant, kept) for meant, kept in pairs)) / size if size else 0.0
    if off > 8 * torch.finfo(dtype).eps:
        text = f"{str(dtype).removeprefix('torch.')} would change ΔW by {off:.1%}"
        raise UserError(text, file=path, hint="write it with --precision fp32")
    io.save_safetensors(path, tensors, with_hashes(tensors, values))
    written = read(path)
    same = written.weights.keys() == rounded.keys() and all(
        torch.equal(w.up, rounded[n].up) and torch.equal(w.down, rounded[n].down) and w.alpha == rounded[n].alpha
        for n, w in written.weights.items()
    )
    if not same:
        hint = "check the disk, and write it again"
        raise UserError("the file does not read back as it was written", file=path, hint=hint)
    return written, off
