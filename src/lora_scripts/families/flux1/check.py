"""Whether a file or folder is a FLUX.1, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.families.black_forest.flux1_blocks import CHANNELS, SIDE
from lora_scripts.families.flow.autoencoder import VAE16
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.flux1 import layout, pair
from lora_scripts.families.flux1.layout import Flux1Layout
from lora_scripts.families.kinds import Shapes, axis
from lora_scripts.families.sd.check import index_of, read_config
from lora_scripts.formats.header import Kind

_BASE = "give FLUX.1 dev (flux1-dev.safetensors)"
CHECKPOINT = Kind("a FLUX.1 checkpoint")
FILL = Kind("a FLUX.1 Fill, which fills in pictures", _BASE)
CONTROL = Kind("a FLUX.1 that is led by a second picture (Canny, Depth)", _BASE)
RELATIVE = Kind("a relative of FLUX.1 with other latents", _BASE)
BARE = Kind(
    "only a FLUX.1 transformer, in diffusers' layout", "give the whole diffusers folder, or flux1-dev.safetensors"
)
NF4 = Kind("a FLUX.1 in 4 bits (NF4)", "give the bf16, fp16 or fp8 version; base_precision makes it smaller in memory")
_BY_CHANNELS = {4 * CHANNELS: CHECKPOINT, 8 * CHANNELS: CONTROL, 24 * CHANNELS: FILL}
_PIPELINES = {
    "FluxFillPipeline": FILL,
    "FluxControlPipeline": CONTROL,
}
FILES = Transformer[Flux1Layout](
    words="FLUX.1",
    model="FluxTransformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=pair.find,
    vae=VAE16,
    side=SIDE,
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the modulations of each block, which FLUX.2's blocks share."""
    keys = {stripped(key): key for key in shapes}
    if "single_transformer_blocks.0.proj_mlp.weight" in keys:
        return BARE
    if not {"double_blocks.0.img_mod.lin.weight", "img_in.weight"} <= keys.keys():
        return None
    if any(".quant_state.bitsandbytes" in key for key in keys):
        return NF4
    return _BY_CHANNELS.get(axis(shapes, keys["img_in.weight"], 1) or 0, RELATIVE)


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    if class_of(path) != FILES.model:
        return None
    pipeline = str(index_of(path).get("_class_name", ""))
    channels = (read_config(path / "transformer") or {}).get("in_channels", 4 * CHANNELS)
    return _PIPELINES.get(pipeline) or _BY_CHANNELS.get(channels if isinstance(channels, int) else 0, RELATIVE)
