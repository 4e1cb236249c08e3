"""The names of the layers of SDXL that a LoRA may change, by the tables of the layout: they are never derived from a
library's module names.

Facts: kohya's sd-scripts, whose names are the published UNet paths with "_" for ".", and transformers' for both text
encoders (`lora_te1_`, `lora_te2_`); they count 722 modules in the UNet's transformers, 72 and 192 in the encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from lora_scripts.families.names import Base, Layer, Names, Share
from lora_scripts.families.sd.rows import Row
from lora_scripts.families.sd.unet import UNET_PREFIX
from lora_scripts.families.sdxl.layout import STANDARD, SdxlLayout, text_2_rows, text_rows, unet_rows

_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")  # the UNet's: kohya's tools train no layer outside of them
_EMBEDDERS = "conditioner.embedders."
_TEXTS = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


class Module(NamedTuple):
    """One layer that a LoRA may change."""

    path: str
    """Ours: the part, and the layer's path in it."""
    kohya: str
    ldm: str
    """The weight's key in the published single file."""
    share: Share | None = None
    """Which of the rows are meant, where it is the weight of several layers."""


def modules(layout: SdxlLayout = STANDARD) -> list[Module]:
    """Every layer that kohya's tools train."""
    rows = [(layer, row) for layer, row in _layers(layout, shapes=False) if layer.kohya]
    return [Module(layer.path, layer.kohya, row.ldm, row.share) for layer, row in rows]


def weights(layout: SdxlLayout = STANDARD) -> list[Module]:
    """Every layer of the UNet and the text encoders, those among them that kohya's tools do not train."""
    return [Module(layer.path, layer.kohya, row.ldm, row.share) for layer, row in _layers(layout, shapes=False)]


@cache
def sdxl() -> Names:
    """SDXL, as published: every other model of the kind has these layers or some of them."""
    kohya: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    untrained: dict[str, str] = {}
    for layer, _ in _layers(STANDARD, shapes=False):
        others |= dict.fromkeys(layer.native, layer.path)
        part = layer.path.partition(".")[0]
        if layer.unet:
            others[f"lora_unet_{layer.hf_flat}"] = layer.path  # as of SD 1.x: diffusers' block names
        if layer.kohya:
            kohya[layer.path] = layer.kohya
        elif layer.unet:  # conv_in and the like, which some trainers train
            untrained[layer.path] = f"lora_unet_{layer.ldm_flat}"
        else:
            continue
        diffusers[layer.path] = f"{part}.{layer.hf}"
        if part == "text_encoder":
            others[layer.kohya.replace("_text_model_", "_")] = layer.path  # as derived from transformers 5.6
    return Names("sdxl", "SDXL", kohya, kohya | untrained, diffusers, others, untrained=untrained)


def sdxl_base(layout: SdxlLayout | None) -> Base:
    """The layers of an SDXL; without a layout those of the published one, without shapes."""
    layers = tuple(layer for layer, _ in _layers(layout or STANDARD, shapes=layout is not None))
    return Base(layers, layout.unet.context_width if layout else 0)


def _layers(layout: SdxlLayout, *, shapes: bool) -> Iterator[tuple[Layer, Row]]:
    """Every linear and convolution layer, with its weight's row."""
    for row in unet_rows(layout):
        if _is_layer(row):
            hf, ldm = _stem(row.hf), _stem(row.ldm).removeprefix(UNET_PREFIX)
            kohya = f"lora_unet_{ldm.replace('.', '_')}" if hf.startswith(_BLOCKS) else ""
            yield Layer(f"unet.{hf}", hf, ldm, kohya, row.shape if shapes else ()), row
    for (part, prefix), rows in zip(_TEXTS.items(), (text_rows(layout), text_2_rows(layout)), strict=True):
        for row in rows:
            if _is_layer(row):
                hf, ldm = _stem(row.hf), _stem(row.ldm).removeprefix(_EMBEDDERS)
                kohya = prefix + hf.replace(".", "_") if hf.startswith("text_model.") else ""
                path = f"{part}.{hf.removeprefix('text_model.')}"
                yield Layer(path, hf, ldm, kohya, row.model_shape if shapes else ()), row


def _is_layer(row: Row) -> bool:
    return row.hf.endswith(".weight") and len(row.shape) > 1 and ".embeddings." not in row.hf


def _stem(key: str) -> str:
    return key.removesuffix("_weight").removesuffix(".weight")  # open_clip's q, k and v: attn.in_proj_weight
