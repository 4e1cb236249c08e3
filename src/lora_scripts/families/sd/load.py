"""From state dicts to models: built without weights, filled with those of the file, which stay memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_scripts.compute.meter import ran_out
from lora_scripts.errors import UserError
from lora_scripts.families.sd.text import TextLayout, text_config, text_keys_like
from lora_scripts.families.sd.unet import UnetLayout, unet_config


def build_unet(layout: UnetLayout, sample_size: int, state: Mapping[str, Tensor] | None = None) -> UNet2DConditionModel:
    """The UNet of a layout, with the weights of diffusers' state dict or, without one, on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(layout, sample_size))
    return unet if state is None else _filled(unet, state)


def build_vae(config: Mapping[str, object], state: Mapping[str, Tensor]) -> AutoencoderKL:
    """The VAE of diffusers' arguments and state dict."""
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    return _filled(vae, state)


def build_text(layout: TextLayout, state: Mapping[str, Tensor]) -> CLIPTextModel | CLIPTextModelWithProjection:
    """The text encoder of a layout, with the weights of a state dict in the published names."""
    model = bare_text(layout)
    _filled(model, text_keys_like(state, model.state_dict().keys()))
    embeddings = getattr(model, "text_model", model).embeddings
    embeddings.position_ids = torch.arange(layout.positions)[None]  # the one tensor that no file need have
    return model


def bare_text(layout: TextLayout) -> CLIPTextModel | CLIPTextModelWithProjection:
    """The same on the meta device."""
    kind = CLIPTextModelWithProjection if layout.projection else CLIPTextModel
    with torch.device("meta"):
        return kind(CLIPTextConfig(**text_config(layout)))


def _filled(model: Any, state: Mapping[str, Tensor]) -> Any:
    model.load_state_dict(state, strict=True, assign=True)
    return model


def pretrained(kind: Any, folder: Path) -> Any:
    """A part of a diffusers folder, from the disk alone. UserError where it is not whole: `whole.check_part` has told
    what it knows; what is left are configs of another topology."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as e:
        if ran_out(e):
            raise
        said = " ".join(str(e).split())
        hint = "its config.json and its weights must be of one model; get the folder as it was published"
        raise UserError(f"cannot be loaded: {said[:200]}", file=folder, hint=hint) from None
