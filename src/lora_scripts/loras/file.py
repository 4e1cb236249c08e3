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
from lora_scripts.families.kinds import Kind, kind_of
from lora_scripts.families.sdxl import names as sdxl_names
from lora_scripts.formats import header, io
from lora_scripts.formats.hashes import model_hashes, with_hashes

if TYPE_CHECKING:
    import torch

    from lora_scripts.adapters.weights import LoraWeights

MADE_BY, MADE_FROM = "lora_scripts.made_by", "lora_scripts.made_from"


@dataclass(frozen=True)
class LoraFamily:
    """What a LoRA file says of the kind of model that it is for."""

    name: str
    words: str
    base_version: str
    architecture: str
    implementation: str
    """Of ModelSpec: whose layer names the file follows."""
    kinds: frozenset[Kind]
    """Checkpoints that it can be added to."""

    def table(self) -> dict[str, str]:
        """Our module path -> kohya's name."""
        if self.name == "sdxl":
            return sdxl_names.table()
        from lora_scripts.families.sd1.names import sd1_table

        return sd1_table()


SD1 = LoraFamily(
    name="sd1",
    words="Stable Diffusion 1.x",
    base_version="sd_v1",
    architecture="stable-diffusion-v1/lora",
    implementation="diffusers",
    kinds=frozenset({Kind.SD1, Kind.SD1_INPAINTING, Kind.SD1_EDITING}),
)
SDXL = LoraFamily(
    name="sdxl",
    words="SDXL",
    base_version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base/lora",
    implementation="https://github.com/Stability-AI/generative-models",
    kinds=frozenset({Kind.SDXL}),
)
FAMILIES = (SD1, SDXL)
_SDXL_MARKS = (
    "lora_te1_",
    "lora_te2_",
    "lora_unet_input_blocks_",
    "lora_unet_middle_block_",
    "lora_unet_output_blocks_",
)


@dataclass(frozen=True)
class LoraFile:
    """One LoRA as it lies on the disk."""

    path: Path
    family: LoraFamily
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


def family_of(path: Path) -> LoraFamily:
    """The family of a LoRA file, told by its header; torch is not needed. UserError when it is no LoRA."""
    head = header.read_header(path)
    kind = kind_of(head.shapes)
    if kind is not Kind.LORA:
        raise UserError(f"this is {kind.words}, not a LoRA", file=path, hint="name the .safetensors of a LoRA")
    return SDXL if any(name.startswith(_SDXL_MARKS) for name in head.tensors) else SD1


def read(path: Path) -> LoraFile:
    """Reads a LoRA file, whole. UserError for another file, for unknown keys and for spoilt values."""
    import safetensors.torch

    from lora_scripts.loras import kohya

    family = family_of(path)
    weights = kohya.from_kohya(safetensors.torch.load_file(path), file=path, table=family.table())
    if not any(bool(w.up.any()) and bool(w.down.any()) and w.alpha for w in weights.values()):
        raise UserError("this LoRA changes no weight: all of it is zero", file=path, hint="take another file")
    return LoraFile(path, family, weights, header.read_header(path).metadata, model_hashes(path).sha256)


def new_metadata(
    family: LoraFamily, name: str, *, rank: int, alpha: float, conv: bool, made_by: str, sources: Sequence[Source]
) -> dict[str, str]:
    """The least set that the tools want of a LoRA, with what it was made from; sorted, every value a string."""
    args = {"conv_dim": rank, "conv_alpha": alpha} if conv else {}
    values = {
        "ss_v2": "False",
        "ss_base_model_version": family.base_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(args),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": family.implementation,
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
    path: Path, family: LoraFamily, weights: Mapping[str, LoraWeights], dtype: torch.dtype, values: Mapping[str, str]
) -> tuple[LoraFile, float]:
    """Writes a LoRA as kohya's tools do, and proves it: (the file as read again from the disk, |rounding| / |ΔW|).

    `weights` have one rank and one alpha (`kohya.uniform`). UserError, with nothing written, when `dtype` cannot hold
    them or would lose more of ΔW than its digits say.
    """
    import torch

    from lora_scripts.adapters.algebra import factors
    from lora_scripts.loras import kohya

    tensors = kohya.to_kohya(weights, dtype=dtype, table=family.table())
    rounded = kohya.from_kohya(tensors, table=family.table())
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
