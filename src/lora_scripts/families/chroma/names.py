"""The names of the layers of Chroma that a LoRA may change, by the tables of the layout: where FLUX.1 has them, its.

Facts: ai-toolkit writes the published layout behind `diffusion_model.`, kohya's sd-scripts the same flat, OneTrainer
and diffusers the latter's. ComfyUI knows the network of modulations by its published names alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from lora_scripts.families.black_forest.streams import attention_of, base_of, names_of
from lora_scripts.families.chroma.layout import MODULATION, STANDARD, ChromaLayout, rows
from lora_scripts.families.names import Base, Names

_BLOCKS = 60
"""Of the deepest of the others, Qwen-Image."""


@cache
def names() -> Names:
    """Chroma, as published: a narrower or shallower model has these layers or some of them. Those of its blocks are
    called as in FLUX.1: a file is of a Chroma by the network of modulations, or by what it says of itself."""
    made = names_of("chroma", "Chroma", rows(STANDARD), whole=False)
    own = frozenset(stem for stem in made.stems if MODULATION.rstrip(".") in stem)
    return replace(made, foreign=attention_of(range(STANDARD.double, _BLOCKS)), own=own)


def base(layout: ChromaLayout | None) -> Base:
    """The layers of a Chroma; without a layout those of the published one, without shapes."""
    return base_of(rows(layout or STANDARD), layout.text_width if layout else None)
