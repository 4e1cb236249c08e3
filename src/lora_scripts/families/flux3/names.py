"""The names of the layers of FLUX.3 klein that a LoRA may change, by the tables of the layout.

Facts: diffusers reads its own names behind `transformer.` and the published layout's behind `diffusion_model.`, both
without an alpha. ComfyUI asks of every model for the names that its layers have in ComfyUI, behind `diffusion_model.`
and, flat, `lora_unet_`; that these are the published ones is likely and could not be read, for no version at hand
(0.33.0 is the newest) knows the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.flux3.layout import STANDARD, Flux3Layout, rows
from lora_scripts.families.names import Base, Layer, Names, flat

INSIDE = ("mode_blocks.image.", "txt_mode_blocks.", "single_transformer_blocks.")
"""What the paths of layers begin with that are trained: the blocks, but for those of reference pictures."""
_BLOCKS = (*INSIDE, "mode_blocks.image_cond.")


@cache
def names() -> Names:
    """FLUX.3 klein, as published: a narrower or shallower model has these layers or some of them."""
    kohya: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    for hf, ldm in _layers(STANDARD):
        path = f"{PART}.{hf}"
        kohya[path], diffusers[path] = flat("lora_unet_", ldm), f"diffusion_model.{ldm}"
        published = (kohya[path], diffusers[path], ldm, flat("lycoris_", ldm))
        modern = (f"transformer.{hf}", f"diffusion_model.{hf}", hf, flat("lycoris_", hf))
        others |= dict.fromkeys((*published, *modern), path)
    return Names("flux3", "FLUX.3 klein", kohya, {}, diffusers, others, form="diffusers")


def base(layout: Flux3Layout | None) -> Base:
    """The layers of a FLUX.3 klein; without a layout those of the published one, without shapes."""
    shapes = {stem(row.hf): row.shape for row in linear(rows(layout))} if layout else {}
    layers = []
    for hf, ldm in _layers(layout or STANDARD):
        kohya = flat("lora_unet_", ldm)
        asked = (f"diffusion_model.{ldm}", kohya)
        layers.append(Layer(f"{PART}.{hf}", hf, ldm, kohya, shapes.get(hf, ()), asked))
    return Base(tuple(layers), layout.text_width if layout else 0)


def _layers(layout: Flux3Layout) -> Iterator[tuple[str, str]]:
    """(diffusers' name, published name) of every layer in a block."""
    for row in linear(rows(layout)):
        if row.hf.startswith(_BLOCKS):
            yield stem(row.hf), stem(row.ldm)
