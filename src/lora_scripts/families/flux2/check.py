"""Whether a file or folder is a FLUX.2 klein, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.families.flow.autoencoder import VAE32
from lora_scripts.families.flow.qwen import finder
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.flux2 import layout
from lora_scripts.families.flux2.layout import Flux2Layout
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import read_config
from lora_scripts.formats.header import Kind

_BASE = "give FLUX.2 klein base, 4B or 9B"
CHECKPOINT = Kind("a FLUX.2 klein checkpoint")
DEV = Kind("a FLUX.2 dev checkpoint", _BASE)
DISTILLED = Kind("a FLUX.2 klein distilled to few steps", f"{_BASE}; a LoRA of that works on it, too")
TAPPED = 3
"""Layers of the text encoder whose states stand side by side."""
FILES = Transformer[Flux2Layout](
    words="FLUX.2 klein",
    model="Flux2Transformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=finder(
        lambda own: own.text_width // TAPPED, ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>")
    ),
    vae=VAE32,
    side=layout.SIDE,
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the modulations that all blocks share."""
    keys = {stripped(key) for key in shapes}
    if not {"double_stream_modulation_img.lin.weight", "img_in.weight"} <= keys:
        return None
    return DEV if any(key.startswith("guidance_in.") for key in keys) else CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    if class_of(path) != FILES.model:
        return None
    config = read_config(path / "transformer")
    if config is not None and config.get("guidance_embeds", True):
        return DEV
    return DISTILLED if (read_config(path, "model_index.json") or {}).get("is_distilled") is True else CHECKPOINT
