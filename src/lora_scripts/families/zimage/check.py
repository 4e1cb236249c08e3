"""Whether a file or folder is a Z-Image, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.families.flow.autoencoder import VAE16
from lora_scripts.families.flow.llm import finder
from lora_scripts.families.flow.transformer import Transformer, class_of, named_turbo, stripped
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import read_config
from lora_scripts.families.sd.component import SCHEDULER, configured, shift_of
from lora_scripts.families.zimage import layout
from lora_scripts.families.zimage.layout import ZImageLayout
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("a Z-Image checkpoint")
OMNI = Kind("a Z-Image that reads pictures, too (Omni)", "give Z-Image or Z-Image-Turbo")
FILES = Transformer[ZImageLayout](
    words="Z-Image",
    model="ZImageTransformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=finder(lambda own: own.text_width, ("<|im_start|>", "<|im_end|>")),
    vae=VAE16,
    side=layout.SIDE,
    unused=("norm_final.weight",),
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the tokens that fill up pictures and texts."""
    keys = {stripped(key) for key in shapes}
    if not {"x_pad_token", "cap_pad_token", "x_embedder.weight"} <= keys:
        return None
    return OMNI if any(key.startswith("siglip_") for key in keys) else CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config."""
    if class_of(path) != FILES.model:
        return None
    return OMNI if (read_config(path / "transformer") or {}).get("siglip_feat_dim") else CHECKPOINT


def sampler_shift(path: Path) -> float:
    """Of the noise levels that a base is drawn with, as its folder says."""
    said = _said_shift(path)
    return layout.SAMPLER_SHIFT if said is None else said


def is_turbo(path: Path) -> bool:
    """Whether a base was distilled to few steps. It is the same model to every look but at the shift that a folder's
    scheduler says, 3 where the base says 6, and at the name."""
    return named_turbo(path) or _said_shift(path) == layout.SAMPLER_SHIFT


def _said_shift(path: Path) -> float | None:
    with configured(path / "scheduler", SCHEDULER) as config:
        return shift_of(config) if "shift" in config else None
