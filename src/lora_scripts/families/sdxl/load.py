"""SDXL, from a checkpoint to its parts: UNet, VAE and two text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lora_scripts.compute.resting import Unbuilt, built
from lora_scripts.errors import UserError
from lora_scripts.families.sd import load
from lora_scripts.families.sd.check import native_size, size_made_for
from lora_scripts.families.sd.vae import VAE_PREFIX, check_vae, vae_from, vae_layout_of
from lora_scripts.families.sd.whole import vae_folder
from lora_scripts.families.sdxl import check, singlefile
from lora_scripts.families.sdxl.layout import SIDE, vae_config
from lora_scripts.formats.header import Header

_ALIKE = 0.5
"""Least correlation of a channel's latents of two VAEs of one family; between families it is by chance."""


@dataclass(frozen=True)
class Parts:
    """The four models, and what the base was made for. VAE and text encoders may be `Unbuilt`."""

    unet: nn.Module
    vae: Any
    text: Any
    text_2: Any
    native_size: tuple[int, int]
    """(width, height) in pixels"""


def load_parts(path: Path, vae: Path | None, dtype: torch.dtype) -> Parts:
    """From one published `.safetensors` (memory-mapped) or a diffusers folder, and perhaps a separate VAE.

    `dtype`: what a UNet with scales (fp8_scaled) is made whole in. UserError where the parts do not fit.
    """
    if path.is_dir():
        own, unet, text, text_2, size = _folder(path, vae is None)
    else:
        own, unet, text, text_2, size = _file(path, vae is None, dtype)
    if vae is not None:
        other = _vae(vae)
        if own is not None:
            _require_alike(own, other, vae)
        own = other
    assert own is not None
    return Parts(unet, own, text, text_2, size)


_Loaded = tuple[Any, nn.Module, Any, Any, tuple[int, int]]


def _file(path: Path, needs_vae: bool, dtype: torch.dtype) -> _Loaded:
    header = check.require_file(path, vae=needs_vae)
    layout = singlefile.layout_of(header.shapes, file=path, vae=needs_vae)
    with safe_open(path, "pt") as handle:
        unet, vae, text, text_2 = singlefile.from_ldm(handle, layout, file=path, dtype=dtype)
    return (
        _unbuilt_vae(vae) if needs_vae else _spare_vae(path, header),
        load.build_unet(layout.unet, unet),
        Unbuilt(partial(load.build_text, layout.text, text)),
        Unbuilt(partial(load.build_text, layout.text_2, text_2)),
        native_size(header.metadata, (SIDE, SIDE)),
    )


def _unbuilt_vae(state: dict[str, Tensor]) -> Unbuilt:
    return Unbuilt(partial(load.build_vae, vae_config(*vae_layout_of(state)), state))


def _spare_vae(path: Path, header: Header) -> Unbuilt | None:
    """The checkpoint's own VAE where another one is given, to compare that with; None if there is no whole one."""
    shapes = {key: shape for key, shape in header.shapes.items() if key.startswith(VAE_PREFIX)}
    try:
        check_vae(shapes, file=path, tolerated=singlefile.is_tolerated, plain=singlefile.NOT_PLAIN)
    except UserError:
        return None
    with safe_open(path, "pt") as handle:
        return _unbuilt_vae(vae_from(handle, shapes, file=path))


def _folder(path: Path, needs_vae: bool) -> _Loaded:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    check.check(path, needs_vae)
    return (
        load.pretrained(AutoencoderKL, path / "vae") if (path / "vae" / "config.json").is_file() else None,
        load.unet_of(path / "unet"),
        load.pretrained(CLIPTextModel, path / "text_encoder"),
        load.pretrained(CLIPTextModelWithProjection, path / "text_encoder_2"),
        size_made_for(path, (SIDE, SIDE)),
    )


def _vae(path: Path) -> Any:
    """A separate VAE: a diffusers folder or a `.safetensors` in either naming, which stays `Unbuilt`."""
    header = check.check_vae(path)
    if header is None:
        from diffusers import AutoencoderKL

        return load.pretrained(AutoencoderKL, vae_folder(path))
    with safe_open(path, "pt") as handle:
        return _unbuilt_vae(vae_from(handle, header.shapes, file=path))


@torch.no_grad()
def _require_alike(own: Any, other: Any, path: Path) -> None:
    """UserError unless both VAEs make much the same latents of a picture. A UNet knows the latents of one: those of
    another family have the same shape and the same names, and train it into nonsense.
    """
    a, b = (built(vae).float().encode(_test_picture()).latent_dist.mean[0].flatten(1) for vae in (own, other))
    if a.shape != b.shape or _correlation(a, b).min() < _ALIKE:
        text = "this VAE makes other latents than the base's own: it is of another model"
        raise UserError(text, file=path, hint=check.OTHER_VAE)


def _test_picture() -> Tensor:
    """[1, 3, 128, 128] in [-1, 1]: slopes, a disc and stripes in colours."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    disc, stripes = ((x + 0.3) ** 2 + y**2 < 0.2).float() * 2 - 1, torch.sin(24 * (x + y))
    return torch.stack((0.6 * x + 0.4 * disc, 0.7 * y - 0.3 * stripes, 0.5 * disc * y - 0.5 * x))[None].clamp(-1, 1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of each row of [channels, places] with its like."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
