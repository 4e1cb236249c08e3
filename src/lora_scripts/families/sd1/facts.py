"""Stable Diffusion 1.x, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, LoraFacts, Weight
from lora_scripts.families.sd.check import refuse_scales, size_made_for
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


def _base(path: Path | None) -> Base:
    from lora_scripts.families.sd1 import names, skeleton

    return names.sd1_base(names.STANDARD, shapes=False) if path is None else names.sd1_base(skeleton.layout_of(path))


def _weights(header: Header, path: Path) -> dict[str, Weight]:
    from lora_scripts.families.sd1 import singlefile

    refuse_scales(path, header)
    layout = singlefile.layout_of(header.shapes, file=path, vae=False)
    parts = (("unet", singlefile.unet_rows(layout)), ("text_encoder", singlefile.text_rows(layout)))
    return {
        f"{part}.{row.hf.removesuffix('.weight').removeprefix('text_model.')}": Weight(row.ldm)
        for part, rows in parts
        for row in rows
        if row.hf.endswith(".weight") and row.ldm in header.tensors
    }


def _wrapped() -> dict[str, str]:
    from lora_scripts.families.sd.text import library_prefix

    return {"unet": "", "text_encoder": library_prefix(projection=False)}


def _unread(key: str, vae: bool) -> bool:
    from lora_scripts.families.sd1 import singlefile

    return singlefile.is_tolerated(key) or (not vae and key.startswith(singlefile.VAE_PREFIX))


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
    lora=LoraFacts(
        "sd_v1", "stable-diffusion-v1/lora", "diffusers", webui="SD1", civitai="SD 1.5", hub_tags=("stable-diffusion",)
    ),
    names=_names,
    kind_of=check.kind_of,
    folder_kind=check.folder_kind,
    told=lambda path: {"prediction": "epsilon", "zero_terminal_snr": False},
    check=check.check,
    weights=_weights,
    parts={"unet": "", "text_encoder": "text_model."},
    check_vae=check.check_vae,
    wrapped=_wrapped,
    unread=_unread,
    base=_base,
    build=_build,
)
