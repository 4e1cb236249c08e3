"""The topology of SDXL, and a row for every parameter of its four parts, generated from the widths.

Facts: Stability's generative-models `configs/inference/sd_xl_base.yaml` (320 channels, multipliers 1, 2, 4, two
residual blocks a level, transformers 0, 2 and 10 deep, heads of 64 channels); what 1.x shares stands in `families/sd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_scripts.families.sd import text, unet, vae
from lora_scripts.families.sd.rows import Row
from lora_scripts.families.sd.text import TextLayout
from lora_scripts.families.sd.unet import UnetLayout

TEXT_PREFIX = "conditioner.embedders.0.transformer.text_model."
TEXT_2_PREFIX = "conditioner.embedders.1.model."
HEAD = 64
"""Channels of an attention head of the UNet."""
SCALING = 0.13025
"""Latents are multiplied by this (Podell et al. 2023; sd_xl_base.yaml)."""
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for."""


@dataclass(frozen=True)
class SdxlLayout:
    """What tells one SDXL from another."""

    unet: UnetLayout
    text: TextLayout
    """CLIP-L; only its hidden states are read."""
    text_2: TextLayout
    """OpenCLIP-G; its hidden states and its pooled state are read."""
    vae_widths: tuple[int, ...] = ()
    """Channels of the four levels; () when the file holds no VAE."""
    latent_channels: int = 4


STANDARD = SdxlLayout(
    unet=UnetLayout(
        widths=(320, 640, 1280),
        depths=(0, 2, 10),
        heads=(5, 10, 20),
        context_width=2048,
        linear=True,
        pooled_width=1280,
        size_width=256,
    ),
    text=TextLayout(768, 12, 3072, 49408, 77),
    text_2=TextLayout(1280, 32, 5120, 49408, 77, projection=1280, activation="gelu"),
    vae_widths=(128, 256, 512, 512),
)
"""sd_xl_base_1.0."""


def unet_rows(layout: SdxlLayout) -> list[Row]:
    """Every parameter of the UNet, in the order of the data's way through it."""
    return unet.unet_rows(layout.unet)


def text_rows(layout: SdxlLayout) -> list[Row]:
    """Every parameter of the first text encoder; both layouts share the names."""
    return text.clip_rows(layout.text, TEXT_PREFIX)


def text_2_rows(layout: SdxlLayout) -> list[Row]:
    """Every parameter of the second text encoder."""
    return text.open_clip_rows(layout.text_2, TEXT_2_PREFIX)


def vae_rows(layout: SdxlLayout) -> list[Row]:
    """Every parameter of the VAE; none when the file holds none."""
    return vae.vae_rows(layout.vae_widths, layout.latent_channels)


def parts(layout: SdxlLayout) -> Mapping[str, list[Row]]:
    """The rows of each part, by what people call it."""
    rows = {
        "UNet": unet_rows(layout),
        "first text encoder": text_rows(layout),
        "second text encoder": text_2_rows(layout),
        "VAE": vae_rows(layout),
    }
    return {part: table for part, table in rows.items() if table}


def unet_config(layout: SdxlLayout) -> dict[str, object]:
    """Arguments of diffusers' UNet2DConditionModel."""
    return unet.unet_config(layout.unet, sample_size=SIDE // vae.FACTOR)


def vae_config(widths: tuple[int, ...], latents: int = 4) -> dict[str, object]:
    """Arguments of diffusers' AutoencoderKL."""
    return vae.vae_config(widths, latents, scaling=SCALING, sample_size=SIDE)
