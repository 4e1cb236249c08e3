"""From state dicts to models: built without weights, filled with those of the file, which stay memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lora_scripts.families.sd.component import configured, require_kinds
from lora_scripts.families.sd.network import Unet
from lora_scripts.families.sd.text import TextLayout, text_config, text_keys_like
from lora_scripts.families.sd.unet import UnetLayout, unet_rows
from lora_scripts.families.sd.whole import UNET_STEM, unet_layout, weights_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection


def build_unet(layout: UnetLayout, state: Mapping[str, Tensor] | None = None) -> Unet:
    """The UNet of a layout, with the weights of diffusers' state dict or, without one, on the meta device."""
    with torch.device("meta"):
        unet = Unet(layout)
    if state is not None:
        unet.load_state_dict(state, strict=True, assign=True)
    return unet


def build_vae(config: Mapping[str, object], state: Mapping[str, Tensor]) -> AutoencoderKL:
    """The VAE of diffusers' arguments and state dict."""
    from diffusers import AutoencoderKL

    quieten()
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
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if layout.projection else CLIPTextModel
    with torch.device("meta"):
        return kind(CLIPTextConfig(**text_config(layout)))


def _filled(model: Any, state: Mapping[str, Tensor]) -> Any:
    model.load_state_dict(state, strict=True, assign=True)
    return model


def pretrained(kind: Any, folder: Path) -> Any:
    """A part of a diffusers folder, from the disk alone. UserError where it is not whole: `whole.check_part` has told
    what it knows; what is left are configs of another topology."""
    quieten()
    with configured(folder) as config:
        if kind.__module__.startswith("diffusers."):
            require_kinds(config, kind)
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def unet_of(folder: Path) -> nn.Module:
    """The UNet of a diffusers folder that was checked: ours, its numbers mapped; diffusers' own where it has a setting
    or a topology that is not ours."""
    with configured(folder):
        layout = unet_layout(folder)
    if layout is None:
        from diffusers import UNet2DConditionModel

        unet: nn.Module = pretrained(UNet2DConditionModel, folder)
        return unet
    known, state = {row.hf for row in unet_rows(layout)}, dict[str, Tensor]()
    for file in weights_of(folder, UNET_STEM):
        with safe_open(file, "pt") as handle:
            state |= {key: handle.get_tensor(key) for key in handle.keys() if key in known}  # noqa: SIM118
    with configured(folder):
        return build_unet(layout, state)


def quieten() -> None:
    """The libraries' warnings and bars are about what nobody asked for."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
