"""SDXL, as facts. It has no model here yet: its LoRA files are read and merged, not trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, LoraFacts, Weight
from lora_scripts.families.kinds import Shapes, axis
from lora_scripts.formats.header import Header, Kind

if TYPE_CHECKING:
    from torch import nn

    from lora_scripts.families.names import Base, Names

CHECKPOINT = Kind("an SDXL checkpoint")
REFINER = Kind("an SDXL refiner")
_UNET = "model.diffusion_model."


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is, by its text encoders and by the width that its UNet reads."""
    if any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        return REFINER
    if any(name.startswith(("conditioner.embedders.", f"{_UNET}label_emb.")) for name in shapes):
        return CHECKPOINT
    if any(name.startswith("cond_stage_model.transformer.text_model.") for name in shapes):
        return None
    context = axis(shapes, f"{_UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 1)
    return {2048: CHECKPOINT, 1280: REFINER}.get(context or 0)


def _folder_kind(path: Path) -> Kind | None:
    return CHECKPOINT if (path / "text_encoder_2").is_dir() and (path / "unet").is_dir() else None


def _names() -> Names:
    from lora_scripts.families.sdxl import names

    return names.sdxl()


def _check(path: Path, vae: bool) -> None:
    raise NotImplementedError


def _check_vae(path: Path) -> Header | None:
    raise NotImplementedError


def _weights(header: Header, path: Path) -> dict[str, Weight]:
    from lora_scripts.families.sdxl import names

    found = names.modules()
    return {module.path: Weight(module.ldm, module.third) for module in found if module.ldm in header.tensors}


def _base(path: Path | None) -> Base:
    raise NotImplementedError


def _build(path: Path) -> dict[str, nn.Module]:
    raise NotImplementedError


FACTS = Facts(
    name="sdxl",
    words="SDXL",
    example="sd_xl_base_1.0.safetensors",
    checkpoint=CHECKPOINT,
    mergeable=frozenset({CHECKPOINT}),
    model="",
    features=frozenset({"pictures"}),
    native_size=(1024, 1024),
    bucket_step=64,
    vae_factor=8,
    latent_channels=4,
    groups={},
    image_root="unet",
    text_roots=("text_encoder", "text_encoder_2"),
    lora=LoraFacts(
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base/lora",
        "https://github.com/Stability-AI/generative-models",
    ),
    names=_names,
    kind_of=kind_of,
    folder_kind=_folder_kind,
    told=lambda path: {},
    check=_check,
    weights=_weights,
    parts={},
    check_vae=_check_vae,
    base=_base,
    build=_build,
)
