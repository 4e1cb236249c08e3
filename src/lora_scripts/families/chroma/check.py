"""Whether a file or folder is a Chroma, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_scripts.families.black_forest.flux1_blocks import CHANNELS, SIDE
from lora_scripts.families.chroma import layout
from lora_scripts.families.chroma.layout import MODULATION, ChromaLayout
from lora_scripts.families.flow import t5
from lora_scripts.families.flow.autoencoder import VAE16
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes, axis
from lora_scripts.formats.header import Kind

_BASE = "give Chroma1-HD.safetensors"
CHECKPOINT = Kind("a Chroma checkpoint")
RADIANCE = Kind("a Chroma1-Radiance, which draws without a VAE", _BASE)
RELATIVE = Kind("a relative of Chroma with other latents", _BASE)
NF4 = Kind("a Chroma in 4 bits (NF4)", "give the bf16, fp16 or fp8 version; base_precision makes it smaller in memory")
BARE = Kind("only a Chroma transformer, in diffusers' layout", f"give the whole diffusers folder, or {_BASE[5:]}")


def _text(own: ChromaLayout, base: Path, given: Sequence[Path]) -> t5.T5Source:
    return t5.find_alone(base, given, own.text_width)


def _complete(model: Any) -> None:
    """The numbers of the places that modulations are for: no file holds them."""
    old = model.time_text_embed
    model.time_text_embed = type(old)(num_channels=old.time_proj.num_channels, out_dim=len(old.mod_proj))


FILES = Transformer[ChromaLayout](
    words="Chroma",
    model="ChromaTransformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=_text,
    vae=VAE16,
    side=SIDE,
    complete=_complete,
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its mark is the network that says the modulations, beside blocks that are FLUX.1's."""
    keys = {stripped(key): key for key in shapes}
    if not any(key.startswith(MODULATION) for key in keys):
        return None
    if "single_transformer_blocks.0.proj_mlp.weight" in keys:
        return BARE
    if any(".quant_state.bitsandbytes" in key for key in keys):
        return NF4
    if any(key.startswith("nerf_") for key in keys):
        return RADIANCE
    channels = axis(shapes, keys["img_in.weight"], 1) if "img_in.weight" in keys else None
    return CHECKPOINT if channels in (None, 4 * CHANNELS) else RELATIVE


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config."""
    return CHECKPOINT if class_of(path) == FILES.model else None
