"""Stable Diffusion 1.x or 2.x, from a checkpoint to its three parts: UNet, VAE and text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from lora_scripts.compute.resting import Unbuilt
from lora_scripts.families.sd import load
from lora_scripts.families.sd.whole import vae_folder
from lora_scripts.families.sd1 import check, singlefile
from lora_scripts.families.sd1.layout import vae_config, vae_config_of


@dataclass(frozen=True)
class Parts:
    """The three models. VAE and text encoder may be `Unbuilt`: their numbers are mapped, and no library is imported."""

    unet: nn.Module
    vae: Any
    text: Any


def load_parts(path: Path, vae: Path | None) -> Parts:
    """From one file in the published layout or a diffusers folder, and perhaps a separate VAE. UserError for faults."""
    parts = (_folder if path.is_dir() else _file)(path, with_vae=vae is None)
    return parts if vae is None else Parts(parts.unet, load_vae(vae), parts.text)


def _file(path: Path, *, with_vae: bool) -> Parts:
    head = check.require_file(path, vae=with_vae)
    layout = singlefile.layout_of(head.shapes, file=path, vae=with_vae)
    with safe_open(path, "pt") as handle:
        unet, vae, text = singlefile.from_ldm(handle, layout, file=path)
    return Parts(
        load.build_unet(layout.unet, unet),
        Unbuilt(partial(load.build_vae, vae_config(layout), vae)) if with_vae else None,
        Unbuilt(partial(load.build_text, layout.text, text)),
    )


def _folder(path: Path, *, with_vae: bool) -> Parts:
    """unet/, vae/, text_encoder/, each with a config.json and safetensors weights."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    check.check(path, with_vae)
    vae = load.pretrained(AutoencoderKL, path / "vae") if with_vae else None
    return Parts(load.unet_of(path / "unet"), vae, load.pretrained(CLIPTextModel, path / "text_encoder"))


def load_vae(path: Path) -> Any:
    """A separate VAE: a diffusers folder or a `.safetensors` in either naming, which stays `Unbuilt`."""
    if path.is_dir():
        from diffusers import AutoencoderKL

        return load.pretrained(AutoencoderKL, vae_folder(path))
    head = check.check_vae(path)
    assert head is not None
    with safe_open(path, "pt") as handle:
        widths, state = singlefile.vae_from(handle, head.shapes, file=path)
    return Unbuilt(partial(load.build_vae, vae_config_of(widths), state))
