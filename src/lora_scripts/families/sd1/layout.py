"""The topology of Stable Diffusion 1.x and 2.x, and a row for every parameter of their three parts, generated from the
widths.

Facts: `configs/stable-diffusion/v1-inference.yaml` of CompVis, `v2-inference.yaml` and `v2-inference-v.yaml` of
Stability's stablediffusion; what XL shares stands in `families/sd`. 2.x differs in three things: the ways into and out
of a transformer are matrices, a head has 64 channels, and the text encoder is OpenCLIP's ViT-H in its own names, whose
last layer is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_scripts.families.sd import text, unet, vae
from lora_scripts.families.sd.rows import Row
from lora_scripts.families.sd.text import TextLayout
from lora_scripts.families.sd.unet import UnetLayout

TEXT_PREFIX = "cond_stage_model.transformer.text_model."
TEXT_2_PREFIX = "cond_stage_model.model."
"""Of 2.x."""

LEVELS = 4
"""Of the UNet; attention stands in levels 0 to 2 and in the middle."""
HEADS = 8
HEAD_2 = 64
"""Channels of an attention head of the UNet of 2.x."""
LAYERS_2 = 23
"""Of the 24 layers of 2.x's text encoder those that are read; a diffusers folder has no more."""
SCALING = 0.18215
"""Latents are multiplied by this, so that they have unit variance (Rombach et al. 2022; SD 1.x configs)."""


@dataclass(frozen=True)
class Sd1Layout:
    """The widths that tell one Stable Diffusion 1.x or 2.x model from another; the rest of the topology is fixed."""

    unet_widths: tuple[int, ...]
    """Channels of the four levels: 320, 640, 1280, 1280 in v1-5."""
    context_width: int
    """Of the text embedding that cross-attention reads: 768 in v1-5."""
    in_channels: int
    out_channels: int
    vae_widths: tuple[int, ...]
    """Channels of the four levels: 128, 256, 512, 512 in v1-5; () when the file holds no VAE."""
    latent_channels: int
    text_width: int
    text_layers: int
    text_intermediate: int
    vocab: int
    positions: int
    second: bool = False
    """Whether it is a 2.x."""

    @property
    def unet(self) -> UnetLayout:
        return UnetLayout(
            widths=self.unet_widths,
            depths=(1, 1, 1, 0),
            heads=tuple(max(1, width // HEAD_2) for width in self.unet_widths) if self.second else (HEADS,) * LEVELS,
            context_width=self.context_width,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            linear=self.second,
        )

    @property
    def text(self) -> TextLayout:
        widths = self.text_width, self.text_layers, self.text_intermediate, self.vocab, self.positions
        return TextLayout(*widths, activation="gelu" if self.second else "quick_gelu")


def unet_rows(layout: Sd1Layout) -> list[Row]:
    """Every parameter of the UNet, in the order of the data's way through it."""
    return unet.unet_rows(layout.unet)


def text_rows(layout: Sd1Layout) -> list[Row]:
    """Every parameter of the CLIP text encoder that is read; of 1.x both layouts share the names."""
    if layout.second:
        return text.open_clip_rows(layout.text, TEXT_2_PREFIX)
    return text.clip_rows(layout.text, TEXT_PREFIX)


def unet_config(layout: Sd1Layout) -> dict[str, object]:
    """Arguments of diffusers' UNet2DConditionModel."""
    return unet.unet_config(layout.unet, sample_size=64)


def vae_config(layout: Sd1Layout) -> dict[str, object]:
    """Arguments of diffusers' AutoencoderKL."""
    return vae_config_of(layout.vae_widths, layout.latent_channels)


def vae_config_of(widths: tuple[int, ...], latent_channels: int = 4) -> dict[str, object]:
    """Arguments of diffusers' AutoencoderKL, of a VAE in a file of its own."""
    return vae.vae_config(widths, latent_channels, scaling=SCALING, sample_size=512)


def text_config(layout: Sd1Layout) -> dict[str, object]:
    """Arguments of transformers' CLIPTextConfig."""
    return text.text_config(layout.text)
