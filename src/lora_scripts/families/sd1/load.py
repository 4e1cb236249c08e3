"""Stable Diffusion 1.x or 2.x, from a checkpoint to its three parts: UNet, VAE and text encoder."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextModel

from lora_scripts.families.sd import load
from lora_scripts.families.sd1 import check, singlefile


def from_file(path: Path, *, with_vae: bool) -> tuple[UNet2DConditionModel, AutoencoderKL | None, CLIPTextModel]:
    """One file in the published layout, memory-mapped."""
    head = check.require_file(path, vae=with_vae)
    layout = singlefile.layout_of(head.shapes, file=path, vae=with_vae)
    with safe_open(path, "pt") as handle:
        unet_sd, vae_sd, text_sd = singlefile.from_ldm(handle, layout, file=path)
    unet = load.build_unet(layout.unet, 64, unet_sd)
    vae = load.build_vae(singlefile.vae_config(layout), vae_sd) if with_vae else None
    return unet, vae, load.build_text(layout.text, text_sd)


def build_unet(layout: singlefile.Sd1Layout) -> UNet2DConditionModel:
    """The UNet of a layout, without weights."""
    return load.build_unet(layout.unet, 64)


def from_folder(path: Path, *, with_vae: bool) -> tuple[UNet2DConditionModel, AutoencoderKL | None, CLIPTextModel]:
    """A diffusers folder: unet/, vae/, text_encoder/, each with a config.json and safetensors weights."""
    check.check(path, with_vae)
    vae = load.pretrained(AutoencoderKL, path / "vae") if with_vae else None
    unet = load.pretrained(UNet2DConditionModel, path / "unet")
    return unet, vae, load.pretrained(CLIPTextModel, path / "text_encoder")


def load_vae(path: Path) -> AutoencoderKL:
    """A separate VAE: a diffusers folder or a `.safetensors` in either naming."""
    if path.is_dir():
        inner = path / "vae" if (path / "vae").is_dir() else path
        return load.pretrained(AutoencoderKL, inner)
    head = check.check_vae(path)
    assert head is not None
    with safe_open(path, "pt") as handle:
        widths, state = singlefile.vae_from(handle, head.shapes, file=path)
    return load.build_vae(singlefile.vae_config_of(widths), state)
