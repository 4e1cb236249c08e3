"""The names of the layers of Anima that a LoRA may change, by the tables of the layout.

Facts: the published layout's names behind `diffusion_model.` are read by ComfyUI and diffusers (diffusion-pipe and
ai-toolkit write them); kohya's, `lora_unet_blocks_0_self_attn_q_proj`, by ComfyUI. diffusers' own, behind
`transformer.`, are none that ComfyUI asks for.
"""

from __future__ import annotations

from functools import cache

from lora_scripts.families.anima.layout import STANDARD, AnimaLayout, rows
from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.names import Base, Layer, Names

INSIDE = ("transformer_blocks.",)
"""What the paths of layers begin with that are trained."""
_ADAPTER = ("diffusion_model.llm_adapter.", "lora_unet_llm_adapter_", "net.llm_adapter.", "llm_adapter.")
"""What stems of the adapter begin with in LoRAs of ai-toolkit's, of sd-scripts', and of ComfyUI's names."""


@cache
def names() -> Names:
    """Anima, as published: a narrower or shallower model has these layers or some of them."""
    kohya: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    for row in linear(rows(STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        path = f"{PART}.{hf}"
        kohya[path], diffusers[path] = f"lora_unet_{ldm.replace('.', '_')}", f"diffusion_model.{ldm}"
        flat = (f"lycoris_{ldm.replace('.', '_')}", f"lycoris_{hf.replace('.', '_')}")
        others |= dict.fromkeys((ldm, f"net.{ldm}", hf, f"transformer.{hf}", *flat), path)
    refused = dict.fromkeys(_ADAPTER, "the adapter of the text encoder")
    return Names("anima", "Anima", kohya, {}, diffusers, others, refused=refused, form="diffusers")


def base(layout: AnimaLayout | None) -> Base:
    """The layers of an Anima; without a layout those of the published one, without shapes."""
    layers = []
    for row in linear(rows(layout or STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        flat = f"lora_unet_{ldm.replace('.', '_')}"
        asked = (f"diffusion_model.{ldm}", flat)
        layers.append(Layer(f"{PART}.{hf}", hf, ldm, flat, row.shape if layout else (), asked))
    return Base(tuple(layers), layout.text_width if layout else 0)
