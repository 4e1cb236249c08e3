"""The names of the layers of Krea 2 that a LoRA may change, by the tables of the layout.

Facts: ComfyUI asks for diffusers' names behind `transformer.`, `diffusion_model.` or nothing and, flat, `lycoris_`, and
for the published layout's behind `diffusion_model.` (ai-toolkit) and, flat, `lora_unet_` (musubi-tuner). diffusers
reads its own behind `transformer.` and the published ones behind `diffusion_model.`, both without an alpha.
musubi-tuner's `convert_lora.py --target other` makes a dot of every _ of its flat names, also of those in
`txtfusion.layerwise_blocks` and `refiner_blocks`: no program asks for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.krea2.layout import STANDARD, Krea2Layout, rows
from lora_scripts.families.names import Base, Layer, Names, flat

INSIDE = ("transformer_blocks.", "text_fusion.", "img_in", "txt_in.", "time_", "final_layer.")
"""What the paths of layers begin with that are trained: all."""
_SHARED = ("img_in", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
"""What diffusers' names end with that other models have, too."""


@cache
def names() -> Names:
    """Krea 2, as published: a narrower or shallower model has these layers or some of them."""
    kohya: dict[str, str] = {}
    original: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    own: set[str] = set()
    for row in linear(rows(STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        path = f"{PART}.{hf}"
        kohya[path], diffusers[path] = flat("lora_unet_", ldm), f"transformer.{hf}"
        original[path] = f"diffusion_model.{ldm}"
        converted = f"diffusion_model.{ldm.replace('_', '.')}"
        published = (kohya[path], original[path], ldm, flat("lycoris_", ldm), converted)
        modern = [name for one in _spelt(hf) for name in (f"transformer.{one}", *_modern(one))]
        others |= dict.fromkeys((*published, *modern), path)
        own |= {kohya[path], original[path], ldm, converted} if "." in ldm else set()
        own |= set() if hf.endswith(_SHARED) else set(modern)
    return Names("krea2", "Krea 2", kohya, original, diffusers, others, own=frozenset(own), form="diffusers")


def base(layout: Krea2Layout | None) -> Base:
    """The layers of a Krea 2; without a layout those of the published one, without shapes."""
    layers = []
    for row in linear(rows(layout or STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        kohya = flat("lora_unet_", ldm)
        asked = [f"diffusion_model.{ldm}", kohya]
        asked += [name for one in _spelt(hf) for name in (f"transformer.{one}", *_modern(one))]
        layers.append(Layer(f"{PART}.{hf}", hf, ldm, kohya, row.shape if layout else (), tuple(asked)))
    return Base(tuple(layers), layout.text_width if layout else 0)


def _modern(hf: str) -> tuple[str, ...]:
    """diffusers' name in other dresses."""
    return f"diffusion_model.{hf}", hf, flat("lycoris_", hf)


def _spelt(hf: str) -> Iterator[str]:
    """diffusers' name, and without the number that the layer has in its list of two."""
    yield hf
    if hf.endswith("to_out.0"):
        yield hf.removesuffix(".0")
