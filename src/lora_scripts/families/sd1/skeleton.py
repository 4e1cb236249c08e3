"""A base model without its weights: the layers that a LoRA meets, read from the checkpoint's header alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError
from lora_scripts.families.sd1 import check, singlefile
from lora_scripts.families.sd1.layout import Sd1Layout, text_config, unet_config

if TYPE_CHECKING:
    from torch import nn


def layout_of(path: Path) -> Sd1Layout:
    """The widths of a checkpoint or a diffusers folder. UserError when it is broken."""
    if path.is_dir():
        return _folder(path)
    head = check.require_file(path, vae=False)
    return singlefile.layout_of(head.shapes, file=path, vae=False)


def build(path: Path) -> dict[str, nn.Module]:
    """As `Facts.build`."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    layout = layout_of(path)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(layout))
        text = CLIPTextModel(CLIPTextConfig(**text_config(layout)))
    # Memory that nothing is written to costs nothing.
    return {"unet": unet.to_empty(device="cpu"), "text_encoder": text.to_empty(device="cpu")}


def _folder(path: Path) -> Sd1Layout:
    """From the two config.json of a diffusers folder."""
    try:
        unet, text = (json.loads((path / part / "config.json").read_text("utf-8")) for part in ("unet", "text_encoder"))
        return Sd1Layout(
            unet_widths=tuple(unet["block_out_channels"]),
            context_width=unet["cross_attention_dim"],
            in_channels=unet["in_channels"],
            out_channels=unet["out_channels"],
            vae_widths=(),
            latent_channels=unet["out_channels"],
            text_width=text["hidden_size"],
            text_layers=text["num_hidden_layers"],
            text_intermediate=text["intermediate_size"],
            vocab=text["vocab_size"],
            positions=text["max_position_embeddings"],
            second=bool(unet.get("use_linear_projection")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "give a diffusers folder of Stable Diffusion, or a single .safetensors file"
        raise UserError(
            f"this is no diffusers folder with a UNet and a text encoder ({error})", file=path, hint=hint
        ) from None
