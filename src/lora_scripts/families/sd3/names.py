"""The names of the layers of Stable Diffusion 3 that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` are read by ComfyUI and diffusers; kohya's on the published layout
(`lora_unet_joint_blocks_…`), in which q, k and v are one layer, by ComfyUI, as behind `diffusion_model.`

What the text's queries find in the last block nobody reads, so they are not trained; nor is what modulates the text
there, which stands the other way round in the published file. Of a LoRA in the published names that has it B is turned.
Medium's last block is one of Large's others: which it is, is told by how many rows it has for its columns.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from lora_scripts.families.black_forest.streams import attention_of, base_of, names_of
from lora_scripts.families.names import Base, Names
from lora_scripts.families.sd3.layout import LARGE, Sd3Layout, rows

_ALL = replace(LARGE, dual=tuple(range(LARGE.blocks)))
"""The deepest one, with a second attention in every block: all published ones have these layers or some of them."""
_OTHERS = frozenset({3072, 4096, 6144})
"""Widths of other models, whose attention has the same names: FLUX.1 and Qwen-Image, Qwen-Image-2.1, and Krea 2."""
_DEEPEST = 60
"""Blocks of the deepest of them."""
_LAST = ("attn.to_", "attn.add_k_proj", "attn.add_v_proj", "attn2.", "ff.", "norm1.")
"""Of the last block: nobody reads what the text's queries find there."""
_VARIED = (".norm1.linear", ".norm1_context.linear")
"""Layers whose proportion is not the same in all blocks."""


def inside(blocks: int) -> tuple[str, ...]:
    """What the paths of layers begin with that are trained, of a model with so many blocks."""
    others = (f"transformer_blocks.{n}." for n in range(blocks - 1))
    return (*others, *(f"transformer_blocks.{blocks - 1}.{part}" for part in _LAST))


@cache
def names() -> Names:
    """Of `_ALL`."""
    made = names_of("sd3", "Stable Diffusion 3.5", rows(_ALL), whole=False, foreign_widths=_OTHERS)
    turned = {stem: path for path, stem in made.kohya.items() if path.endswith(".norm1_context.linear")}
    native = {stem: path for stem, path in made.others.items() if stem.endswith(".context_block.adaLN_modulation.1")}
    shapes = {name: shape for name, shape in made.shapes.items() if not name.endswith(_VARIED)}
    foreign = attention_of(range(LARGE.blocks, _DEEPEST))
    return replace(made, shapes=shapes, foreign=foreign, turned={**made.turned, **turned, **native})


def base(layout: Sd3Layout | None) -> Base:
    """The layers of a Stable Diffusion 3; without a layout those of `_ALL`, without shapes."""
    made = base_of(rows(layout or _ALL), layout.text_width if layout else None)
    # ComfyUI asks for no bare names here.
    bare = tuple(replace(own, asked=tuple(name for name in own.asked if name != own.hf)) for own in made.layers)
    return replace(made, layers=bare)
