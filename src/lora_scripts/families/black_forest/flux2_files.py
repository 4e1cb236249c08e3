"""What the FLUX.2s share as facts: their files, what tells them from others and from each other, groups of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_scripts.families.black_forest import flux2_layout
from lora_scripts.families.black_forest.flux2_layout import GUIDED, Flux2Layout
from lora_scripts.families.flow.autoencoder import VAE32
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import index_of, read_config

TAPPED = 3
"""Layers of the text encoder whose states stand side by side."""
_MODEL = "Flux2Transformer2DModel"
_MLP = (".ff.", ".ff_context.")
GROUPS: dict[str, Callable[[str], bool]] = {
    "attention": lambda path: ".attn." in path,
    "feed_forward": lambda path: any(mark in path for mark in _MLP),
    "double": lambda path: path.startswith("transformer.transformer_blocks."),
    "single": lambda path: path.startswith("transformer.single_transformer_blocks."),
}


def files(words: str, text: Callable[[Flux2Layout, Path, Sequence[Path]], Any]) -> Transformer[Flux2Layout]:
    """`text`: as of `Transformer`."""
    return Transformer(
        words=words,
        model=_MODEL,
        layout_of=flux2_layout.layout_of,
        layout_from=flux2_layout.layout_from,
        config_of=flux2_layout.config_of,
        config_keys=flux2_layout.CONFIG,
        rows=flux2_layout.rows,
        text=text,
        vae=VAE32,
        side=flux2_layout.SIDE,
    )


def guided(shapes: Shapes) -> bool | None:
    """Whether a single file is told its guidance, as dev is; None of one that is no FLUX.2: its marks are the
    modulations that all blocks share."""
    keys = {stripped(key) for key in shapes}
    if not {"double_stream_modulation_img.lin.weight", "img_in.weight"} <= keys:
        return None
    return GUIDED in keys


def guided_folder(path: Path) -> bool | None:
    """The same of a diffusers folder, by its transformer's config, or, where that is damaged, by its index."""
    if class_of(path) != _MODEL:
        return None
    config = read_config(path / "transformer")
    if config is not None:
        return bool(config.get("guidance_embeds", True))
    return index_of(path).get("_class_name") == "Flux2Pipeline"
