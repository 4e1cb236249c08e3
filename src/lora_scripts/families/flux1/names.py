"""The names of the layers of FLUX.1 that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` are read by ComfyUI and diffusers. So are kohya's on the published layout
(`lora_unet_double_blocks_…`), in which q, k and v are one layer, and in the single blocks the MLP with them; ComfyUI
reads these behind `diffusion_model.`, too. T5's are `lora_te3_` in sd-scripts, `lora_te2_` in OneTrainer, and
`text_encoders.t5xxl` in both's files for ComfyUI.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from lora_scripts.families.black_forest.streams import attention_of, base_of, names_of
from lora_scripts.families.flow import clip_l
from lora_scripts.families.flux1.layout import STANDARD, Flux1Layout, rows
from lora_scripts.families.names import Base, Names

_T5 = dict.fromkeys(("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoders.t5xxl."), "T5")
_BLOCKS = 60
"""Of the deepest of the others, Qwen-Image."""


@cache
def names() -> Names:
    """FLUX.1, as published: a narrower or shallower model has these layers or some of them. The attention of SD 3 and
    Qwen-Image has the same names, in more blocks."""
    made = names_of("flux1", "FLUX.1", rows(STANDARD), whole=False)
    made = replace(made, foreign=attention_of(range(STANDARD.double, _BLOCKS)))
    return clip_l.with_clip(made, refused=_T5)


def base(layout: Flux1Layout | None) -> Base:
    """The layers of a FLUX.1; without a layout those of the published one, without shapes."""
    transformer = base_of(rows(layout or STANDARD), layout.text_width if layout else None)
    return clip_l.with_layers(transformer, clip_l.of_width(layout.pooled_width) if layout else None)
