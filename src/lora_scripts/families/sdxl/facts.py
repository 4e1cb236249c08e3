"""SDXL, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, Kept, LoraFacts, Weight
from lora_scripts.families.sd.check import refuse_scales, size_made_for, told
from lora_scripts.families.sd.unet import blocks, groups
from lora_scripts.families.sdxl import check
from lora_scripts.families.sdxl.layout import SIDE
from lora_scripts.families.sdxl.recipes import RECIPES
from lora_scripts.formats.header import Header

if TYPE_CHECKING:
    from torch import nn

    from lora_scripts.families.names import Base, Names

BLOCKS = blocks(levels=3)
"""The UNet's blocks, by the names that block-weight tools give them."""


def _names() -> Names:
    from lora_scripts.families.sdxl import names

    return names.sdxl()


def _weights(header: Header, path: Path) -> dict[str, Weight]:
    from lora_scripts.families.sdxl import names

    refuse_scales(path, header)
    return {m.path: Weight(m.ldm, m.share) for m in names.weights() if m.ldm in header.tensors}


def _base(path: Path | None) -> Base:
    from lora_scripts.families.sdxl import names, skeleton

    return names.sdxl_base(None if path is None else skeleton.layout_of(path))


def _wrapped() -> dict[str, str]:
    from lora_scripts.families.sd.text import library_prefix

    prefixes = {"text_encoder": library_prefix(projection=False), "text_encoder_2": library_prefix(projection=True)}
    return {"unet": "", **prefixes}


def _unread(key: str, vae: bool) -> bool:
    from lora_scripts.families.sd.vae import VAE_PREFIX
    from lora_scripts.families.sdxl import singlefile

    return singlefile.is_tolerated(key) or (not vae and key.startswith(VAE_PREFIX))


def _build(path: Path) -> dict[str, nn.Module]:
    from lora_scripts.families.sdxl import skeleton

    return skeleton.build(path)


FACTS = Facts(
    name="sdxl",
    words="SDXL",
    example="sd_xl_base_1.0.safetensors",
    checkpoint=check.CHECKPOINT,
    published=("hf:stabilityai/stable-diffusion-xl-base-1.0/sd_xl_base_1.0.safetensors", "6.5 GB"),
    mergeable=frozenset({check.CHECKPOINT, check.TURBO, check.INPAINTING, check.EDITING}),
    model="lora_scripts.families.sdxl.model",
    features=frozenset({"pictures", "vae", "negative", "text_encoder", "clip", "prediction", "unet"}),
    native_size=(SIDE, SIDE),
    made_for=lambda path: size_made_for(path, (SIDE, SIDE)),
    least_share=0.36,
    bucket_step=64,
    vae_factor=8,
    latent_channels=4,
    groups=groups(BLOCKS),
    image_root="unet",
    small_kernels=True,
    text_roots=("text_encoder", "text_encoder_2"),
    recipes=RECIPES,
    kept={2567: Kept(3760, 468)},
    lora=LoraFacts(
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base/lora",
        "https://github.com/Stability-AI/generative-models",
        unread_by=frozenset({"additional-networks"}),
        pipeline="StableDiffusionXLPipeline",
        webui="SDXL",
        civitai="SDXL 1.0",
        hub_tags=("stable-diffusion-xl",),
    ),
    names=_names,
    kind_of=check.kind_of,
    folder_kind=check.folder_kind,
    told=told,
    check=check.check,
    weights=_weights,
    parts={"unet": "", "text_encoder": "text_model.", "text_encoder_2": "text_model."},
    check_vae=check.check_vae,
    wrapped=_wrapped,
    unread=_unread,
    base=_base,
    build=_build,
)
