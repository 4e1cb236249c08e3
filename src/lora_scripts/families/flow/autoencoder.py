"""The VAE of 16 channels that several families share (FLUX.1's `ae.safetensors`): SD's, without the two convolutions
around the latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.sd import vae as sd_vae
from lora_scripts.families.sd.check import read_config
from lora_scripts.families.sd.rows import Row, is_spare, size_of
from lora_scripts.families.sd.vae import LEVELS, modern_name, vae_config, vae_rows
from lora_scripts.families.sd.whole import Part, check_part
from lora_scripts.formats.header import Header, read_header

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = 16
PLAIN = "get the original ae.safetensors"
_OTHER = "give ae.safetensors, the VAE of 16 channels, or a folder with it"
_ABSENT = ("use_quant_conv", "use_post_quant_conv")


def vae16_part() -> Part:
    """The VAE of a diffusers folder."""
    return Part("vae", "VAE", "diffusion_pytorch_model", ("block_out_channels", "latent_channels"), _rows, modern_name)


def _rows(config: Mapping[str, Any]) -> list[Row]:
    widths, latents = tuple(config["block_out_channels"]), config["latent_channels"]
    if len(widths) != LEVELS or latents != CHANNELS or any(config.get(key, True) for key in _ABSENT):
        raise ValueError(f"this VAE makes latents of {latents} channels, or has convolutions around them")
    return vae_rows(widths, latents, quant=False)


def vae16_config(widths: tuple[int, ...], scaling: float, shift: float, side: int) -> dict[str, object]:
    """Arguments of diffusers' AutoencoderKL."""
    plain = vae_config(widths, CHANNELS, scaling=scaling, sample_size=side)
    return {**plain, "shift_factor": shift, **dict.fromkeys(_ABSENT, False)}


def folder_of(path: Path) -> Path:
    """The folder of the VAE, in a diffusers folder or by itself."""
    return path / "vae" if (path / "vae").is_dir() else path


def check_vae16(path: Path, words: str) -> Header | None:
    """The header of a file with such a VAE alone; None of a folder. UserErrors for another file or VAE; `words`: what
    people call the base."""
    if path.is_dir():
        config = read_config(folder_of(path)) or {}
        latents = config.get("latent_channels")
        if isinstance(latents, int) and latents != CHANNELS:
            _refuse(latents, words, path)
        check_part(folder_of(path), vae16_part())
        return None
    header = read_header(path)
    kind = kinds.addition(header.shapes) or kinds.other(header.shapes)
    if kind is not kinds.VAE:
        raise UserError(f"this is {kind.words}, not a VAE of {words}", file=path, hint=_OTHER)
    key = next((k for k in header.tensors if k.endswith("decoder.conv_in.weight")), "decoder.conv_in.weight")
    latents = size_of(header.shapes, key, 1, path)
    if latents != CHANNELS:
        _refuse(latents, words, path)
    sd_vae.check_vae(header.shapes, file=path, tolerated=is_spare, plain=PLAIN, quant=False)
    return header


def _refuse(latents: int, words: str, path: Path) -> None:
    text = f"this VAE makes latents of {latents} channels, {words} has {CHANNELS}"
    raise UserError(text, file=path, hint=_OTHER)


def load_vae16(path: Path, words: str, scaling: float, shift: float, side: int) -> Any:
    """diffusers' AutoencoderKL, from a file or a folder that `check_vae16` takes."""
    from diffusers import AutoencoderKL
    from safetensors import safe_open

    from lora_scripts.families.sd.load import build_vae, pretrained

    header = check_vae16(path, words)
    if header is None:
        return pretrained(AutoencoderKL, folder_of(path))
    with safe_open(path, "pt") as handle:
        state: dict[str, Tensor] = sd_vae.vae_from(handle, header.shapes, file=path, quant=False)
    widths, _ = sd_vae.vae_layout_of(state)
    return build_vae(vae16_config(widths, scaling, shift, side), state)
