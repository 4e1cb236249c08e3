"""A base model without its weights: the layers that a LoRA meets, read from the checkpoint's header alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lora_scripts.errors import UserError
from lora_scripts.families.base import find_family
from lora_scripts.families.names import Base
from lora_scripts.families.sd1 import singlefile
from lora_scripts.families.sd1.names import sd1_base
from lora_scripts.families.sd1.singlefile import Sd1Layout
from lora_scripts.formats import header


@dataclass(frozen=True)
class Skeleton:
    """What there is to be changed, and how to build it."""

    base: Base
    build: Callable[[], dict[str, nn.Module]]
    """Fresh parts by name, their weights not set: only for looking at what a loader puts onto them."""


def skeleton_of(path: Path) -> Skeleton:
    """The skeleton of a checkpoint or a diffusers folder. UserError when it is of no family, or broken."""
    return _FAMILIES[find_family(path)](path)


def _sd1(path: Path) -> Skeleton:
    layout = _sd1_folder(path) if path.is_dir() else _sd1_file(path)
    return Skeleton(sd1_base(layout), lambda: _build_sd1(layout))


def _sd1_file(path: Path) -> Sd1Layout:
    head = header.require_sd1(path, vae=False)
    return singlefile.layout_of(head.shapes, file=path, vae=False)


def _sd1_folder(path: Path) -> Sd1Layout:
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
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "give a diffusers folder of Stable Diffusion 1.x, or a single .safetensors file"
        raise UserError(
            f"this is no diffusers folder with a UNet and a text encoder ({error})", file=path, hint=hint
        ) from None


def _build_sd1(layout: Sd1Layout) -> dict[str, nn.Module]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**singlefile.unet_config(layout))
        text = CLIPTextModel(CLIPTextConfig(**singlefile.text_config(layout)))
    # Memory that nothing is written to costs nothing.
    return {"unet": unet.to_empty(device="cpu"), "text_encoder": text.to_empty(device="cpu")}


_FAMILIES: dict[str, Callable[[Path], Skeleton]] = {"sd1": _sd1}
