"""A base model without its weights: the layers that a LoRA meets, read from the checkpoint's header alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families.sd.check import read_config, require_parts
from lora_scripts.families.sd.text import TextLayout, text_config
from lora_scripts.families.sd.unet import SIZES, UnetLayout
from lora_scripts.families.sdxl import check, singlefile
from lora_scripts.families.sdxl.layout import HEAD, SdxlLayout, unet_config

if TYPE_CHECKING:
    from torch import nn


def layout_of(path: Path) -> SdxlLayout:
    """The widths of a checkpoint or a diffusers folder, without its VAE. UserError when it is broken."""
    if path.is_dir():
        return _folder(path)
    header = check.require_file(path, vae=False)
    return singlefile.layout_of(header.shapes, file=path, vae=False)


def build(path: Path) -> dict[str, nn.Module]:
    """As `Facts.build`."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    layout = layout_of(path)
    with torch.device("meta"):
        models: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(**unet_config(layout)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_config(layout.text))),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**text_config(layout.text_2))),
        }
    # Memory that nothing is written to costs nothing.
    return {part: model.to_empty(device="cpu") for part, model in models.items()}


def _folder(path: Path) -> SdxlLayout:
    """From the three config.json of a diffusers folder."""
    require_parts(path, check.PARTS, check.WORDS)
    unet, text, text_2 = (read_config(path / part) or {} for part in check.PARTS)
    try:
        pooled, widths = text_2["projection_dim"], tuple(unet["block_out_channels"])
        return SdxlLayout(
            unet=UnetLayout(
                widths=widths,
                depths=_depths(unet),
                heads=tuple(max(1, width // HEAD) for width in widths),
                context_width=unet["cross_attention_dim"],
                in_channels=unet["in_channels"],
                out_channels=unet["out_channels"],
                linear=True,
                pooled_width=pooled,
                size_width=(unet["projection_class_embeddings_input_dim"] - pooled) // SIZES,
            ),
            text=_text(text),
            text_2=_text(text_2, pooled),
        )
    except (KeyError, TypeError, ValueError) as error:
        text_of = f"this is no diffusers folder of SDXL ({error})"
        raise UserError(text_of, file=path, hint="give another, or a single .safetensors file") from None


def _depths(unet: dict[str, Any]) -> tuple[int, ...]:
    given = unet["transformer_layers_per_block"]
    depths = given if isinstance(given, list) else [given] * len(unet["block_out_channels"])
    kinds = unet["down_block_types"]
    return tuple(depth if "CrossAttn" in kind else 0 for depth, kind in zip(depths, kinds, strict=True))


def _text(config: dict[str, Any], projection: int = 0) -> TextLayout:
    return TextLayout(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        positions=config["max_position_embeddings"],
        projection=projection,
        activation=config["hidden_act"],
    )
