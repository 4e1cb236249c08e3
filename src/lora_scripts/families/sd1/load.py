"""Stable Diffusion 1.x, from a checkpoint to its three parts: UNet, VAE and text encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lora_scripts.errors import UserError
from lora_scripts.families.sd1 import check, singlefile


def from_file(
    path: Path, *, with_vae: bool
) -> tuple[UNet2DConditionModel, AutoencoderKL | None, CLIPTextModel, tuple[int, int]]:
    """One file in the published layout, memory-mapped; the last is the size it was made for, (width, height)."""
    head = check.require_file(path, vae=with_vae)
    layout = singlefile.layout_of(head.shapes, file=path, vae=with_vae)
    with safe_open(path, "pt") as handle:
        unet_sd, vae_sd, text_sd = singlefile.from_ldm(handle, layout, file=path)
    unet, vae = build_unet(layout), None
    _fill(unet, unet_sd)
    if with_vae:
        with torch.device("meta"):
            vae = AutoencoderKL(**singlefile.vae_config(layout))
        _fill(vae, vae_sd)
    text = CLIPTextModel(CLIPTextConfig(**singlefile.text_config(layout)))
    text.load_state_dict(singlefile.text_keys_like(text_sd, text.state_dict().keys()), strict=True)
    return unet, vae, text, _native_size(head.metadata.get("modelspec.resolution", ""))


def _native_size(text: str) -> tuple[int, int]:
    """(width, height) from ModelSpec's "512x512"; 512 x 512 where the file does not say."""
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    return (int(match[1]), int(match[2])) if match else (512, 512)


def build_unet(layout: singlefile.Sd1Layout) -> UNet2DConditionModel:
    """The UNet of a layout, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**singlefile.unet_config(layout))


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    model.load_state_dict(state, strict=True, assign=True)


def from_folder(path: Path, *, with_vae: bool) -> tuple[UNet2DConditionModel, AutoencoderKL | None, CLIPTextModel]:
    """A diffusers folder: unet/, vae/, text_encoder/, each with a config.json and safetensors weights."""
    needed = ["unet", "text_encoder", *(["vae"] if with_vae else [])]
    missing = [p for p in needed if not (path / p / "config.json").is_file()]
    if missing:
        raise UserError(
            f"this folder has no {', '.join(f'{m}/config.json' for m in missing)}",
            file=path,
            hint="give a diffusers folder of Stable Diffusion 1.x, or a single .safetensors file",
        )
    width = json.loads((path / "unet" / "config.json").read_text("utf-8")).get("cross_attention_dim")
    if (path / "text_encoder_2").exists() or width == 1024:
        raise UserError("this is not Stable Diffusion 1.x", file=path, hint="SDXL and SD 2.x are not supported yet")
    vae = _pretrained(AutoencoderKL, path / "vae") if with_vae else None
    return _pretrained(UNet2DConditionModel, path / "unet"), vae, _pretrained(CLIPTextModel, path / "text_encoder")


def _pretrained(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except OSError as e:
        raise UserError(
            str(e).splitlines()[0], file=folder, hint="it needs config.json and .safetensors weights"
        ) from None


def load_vae(path: Path) -> AutoencoderKL:
    """A separate VAE: a diffusers folder or a `.safetensors` in either naming."""
    if path.is_dir():
        inner = path / "vae" if (path / "vae").is_dir() else path
        return _pretrained(AutoencoderKL, inner)
    head = check.check_vae(path)
    assert head is not None
    with safe_open(path, "pt") as handle:
        widths, state = singlefile.vae_from(handle, head.shapes, file=path)
    with torch.device("meta"):
        vae = AutoencoderKL(**singlefile.vae_config_of(widths))
    _fill(vae, state)
    return vae
