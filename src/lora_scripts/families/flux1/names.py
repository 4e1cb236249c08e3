"""The names of the layers of FLUX.1 that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` are read by ComfyUI and diffusers. So are kohya's on the published layout
(`lora_unet_double_blocks_…`), in which q, k and v are one layer, and in the single blocks the MLP with them; ComfyUI
reads these behind `diffusion_model.`, too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from lora_scripts.families.black_forest.streams import attention_of, base_of, names_of
from lora_scripts.families.flux1.layout import STANDARD, Flux1Layout, rows
from lora_scripts.families.names import Base, Names

_BLOCKS = 60
"""Of the deepest of the others, Qwen-Image."""


@cache
def names() -> Names:
    """FLUX.1, as published: a narrower or shallower model has these layers or some of them. The attention of SD 3 and
    Qwen-Image has the same names, in more blocks."""
    made = names_of("flux1", "FLUX.1", rows(STANDARD), kohya=True, whole=False)
    return replace(made, foreign=attention_of(range(STANDARD.double, _BLOCKS)))


def base(layout: Flux1Layout | None) -> Base:
    """The layers of a FLUX.1; without a layout those of the published one, without shapes."""
    return base_of(rows(layout or STANDARD), layout.text_width if layout else None)
