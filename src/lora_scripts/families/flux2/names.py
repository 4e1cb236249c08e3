"""The names of the layers of FLUX.2 klein that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` are read by ComfyUI and diffusers. So are the published layout's, as
ai-toolkit (`diffusion_model.double_blocks…`) and kohya's tools (`lora_unet_double_blocks_…`) write them; q, k and v
are one layer.
"""

from __future__ import annotations

from functools import cache

from lora_scripts.families.black_forest.flux2_layout import KLEIN, Flux2Layout, rows
from lora_scripts.families.black_forest.streams import base_of, names_of
from lora_scripts.families.names import Base, Names


@cache
def names() -> Names:
    """klein 9B; 4B has some of these layers, and what has more is another model."""
    return names_of("flux2", "FLUX.2 klein", rows(KLEIN), whole=True)


def base(layout: Flux2Layout | None) -> Base:
    """The layers of a FLUX.2 klein; without a layout those of 9B, without shapes."""
    return base_of(rows(layout or KLEIN), layout.text_width if layout else None)
