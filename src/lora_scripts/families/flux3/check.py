"""Whether a file or folder is a FLUX.3 klein, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.families.flow.autoencoder import VAE32
from lora_scripts.families.flow.llm import QWEN3_VL, finder
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.flux3 import layout
from lora_scripts.families.flux3.layout import JUMPS, Flux3Layout
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import read_config
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("a FLUX.3 klein checkpoint")
DISTILLED = Kind("a FLUX.3 klein distilled to few steps", "give FLUX.3 klein base")
BARE = Kind(
    "only a FLUX.3 klein transformer, in diffusers' layout",
    "give the whole diffusers folder, or the single file in the published layout",
)
OTHER = Kind("a FLUX.3 that draws no pictures (films, sound, actions)", "give FLUX.3 klein base, which draws pictures")
TAPS = (4, 8, 12, 16, 20, 24, 28, 32)
"""Behind which layers of the text encoder the states are taken."""
_SIGNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


FILES = Transformer[Flux3Layout](
    words="FLUX.3 klein",
    model="Flux3Transformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=finder(lambda own: own.text_width // len(TAPS), _SIGNS, QWEN3_VL, TAPS[-1]),
    vae=VAE32,
    side=layout.SIDE,
    unused=("repa_projectors.",),
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the modulations of each mode."""
    keys = {stripped(key) for key in shapes}
    if {"early_stream_modulations.image.linear.weight", "x_embedders.image.weight"} <= keys:
        return BARE
    if "early_stream_modulations.txt.lin.weight" not in keys:
        return None
    if "emb_in.image.weight" not in keys:
        return OTHER
    return DISTILLED if JUMPS in keys else CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config."""
    if class_of(path) != FILES.model:
        return None
    return DISTILLED if (read_config(path / "transformer") or {}).get("flow_map") is True else CHECKPOINT
