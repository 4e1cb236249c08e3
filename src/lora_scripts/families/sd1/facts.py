"""Stable Diffusion 1.x and 2.x, as facts: two families of one topology, but for what `layout` says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, Kept, LoraFacts, Weight
from lora_scripts.families.sd.check import refuse_scales, size_made_for, told
from lora_scripts.families.sd.unet import groups
from lora_scripts.families.sd1 import check
from lora_scripts.families.sd1.recipes import RECIPES
from lora_scripts.formats.header import Header

if TYPE_CHECKING:
    from torch import nn

    from lora_scripts.families.names import Base, Names

BLOCKS = (*(f"IN{i:02}" for i in range(12)), "MID", *(f"OUT{i:02}" for i in range(12)))
"""The UNet's blocks, by the names that block-weight tools give them."""


def _names() -> Names:
    from lora_scripts.families.sd1 import names

    return names.sd1()


def _names_2() -> Names:
    from lora_scripts.families.sd1 import names

    return names.sd2()


def _base_2(path: Path | None) -> Base:
    from lora_scripts.families.sd1 import names

    return names.sd1_base(names.STANDARD_2, shapes=False) if path is None else _base(path)


def _base(path: Path | None) -> Base:
    from lora_scripts.families.sd1 import names, skeleton

    return names.sd1_base(names.STANDARD, shapes=False) if path is None else names.sd1_base(skeleton.layout_of(path))


def _weights(header: Header, path: Path) -> dict[str, Weight]:
    from lora_scripts.families.sd1 import singlefile
    from lora_scripts.families.sd1.layout import text_rows, unet_rows

    refuse_scales(path, header)
    layout = singlefile.layout_of(header.shapes, file=path, vae=False)
    parts = (("unet", unet_rows(layout)), ("text_encoder", text_rows(layout)))
    return {
        f"{part}.{row.hf.removesuffix('.weight').removeprefix('text_model.')}": Weight(row.ldm, row.share)
        for part, rows in parts
        for row in rows
        if row.hf.endswith(".weight") and row.ldm in header.tensors
    }


def _wrapped() -> dict[str, str]:
    from lora_scripts.families.sd.text import library_prefix

    return {"unet": "", "text_encoder": library_prefix(projection=False)}


def _unread(key: str, vae: bool) -> bool:
    from lora_scripts.families.sd.vae import VAE_PREFIX
    from lora_scripts.families.sd1 import singlefile

    return singlefile.is_tolerated(key) or (not vae and key.startswith(VAE_PREFIX))


def _build(path: Path) -> dict[str, nn.Module]:
    from lora_scripts.families.sd1 import skeleton

    return skeleton.build(path)


FACTS = Facts(
    name="sd1",
    words="Stable Diffusion 1.x",
    example="v1-5-pruned.safetensors",
    checkpoint=check.CHECKPOINT,
    published=("hf:stable-diffusion-v1-5/stable-diffusion-v1-5/v1-5-pruned-emaonly.safetensors", "4 GB"),
    mergeable=frozenset({check.CHECKPOINT, check.INPAINTING, check.EDITING}),
    model="lora_scripts.families.sd1.model",
    features=frozenset({"pictures", "vae", "negative", "text_encoder", "clip", "prediction", "unet"}),
    native_size=(512, 512),
    made_for=lambda path: size_made_for(path, (512, 512)),
    least_share=0.0,
    bucket_step=64,
    vae_factor=8,
    latent_channels=4,
    groups=groups(BLOCKS),
    image_root="unet",
    small_kernels=True,
    text_roots=("text_encoder",),
    recipes=RECIPES,
    kept={860: Kept(502, 67)},
    lora=LoraFacts(
        "sd_v1",
        "stable-diffusion-v1/lora",
        "diffusers",
        pipeline="StableDiffusionPipeline",
        webui="SD1",
        civitai="SD 1.5",
        hub_tags=("stable-diffusion",),
    ),
    names=_names,
    kind_of=check.kind_of,
    folder_kind=check.folder_kind,
    told=told,
    check=check.check,
    weights=_weights,
    parts={"unet": "", "text_encoder": "text_model."},
    check_vae=check.check_vae,
    wrapped=_wrapped,
    unread=_unread,
    base=_base,
    build=_build,
)

FACTS_2 = replace(
    FACTS,
    name="sd2",
    words="Stable Diffusion 2.x",
    example="v2-1_768-ema-pruned.safetensors",
    checkpoint=check.CHECKPOINT_2,
    published=None,
    mergeable=frozenset({check.CHECKPOINT_2}),
    native_size=check.SIZES_2["v"],
    made_for=check.made_for_2,
    kept={866: Kept(1125, 151)},
    lora=LoraFacts(
        "sd_v2",
        "stable-diffusion-v2-512/lora",
        "diffusers",
        v2=True,
        # kohya's tools have proj_in and proj_out as convolutions, whose files diffusers does not load.
        unread_by=frozenset({"kohya", "additional-networks"}),
        of_v=("sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        pipeline="StableDiffusionPipeline",
        webui="SD2",
        civitai="SD 2.1",
        hub_tags=("stable-diffusion",),
    ),
    names=_names_2,
    told=check.told_2,
    guessed=check.guessed_2,
    base=_base_2,
)
