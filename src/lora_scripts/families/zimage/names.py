"""The names of the layers of Z-Image that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` or `diffusion_model.` are read by ComfyUI and diffusers (ai-toolkit writes
the latter). So are kohya's on the published layout (`lora_unet_layers_0_attention_qkv`, as musubi-tuner trains), in
which q, k and v are one layer; behind `diffusion_model.` ComfyUI reads these, diffusers leaves q, k and v out. Kohya's
with diffusers' layers (`lora_unet_layers_0_attention_to_q`) are read by diffusers; ComfyUI knows half of them.
"""

from __future__ import annotations

from functools import cache

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.names import Base, Layer, Names, Share
from lora_scripts.families.zimage.layout import STANDARD, ZImageLayout, rows

INSIDE = ("layers.", "noise_refiner.", "context_refiner.")
"""What the paths of layers begin with that are trained here; OneTrainer's preset "full" has the others, too."""


@cache
def names() -> Names:
    """Z-Image, as published: a narrower or shallower model has these layers or some of them."""
    kohya: dict[str, str] = {}
    original: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    fused: dict[str, dict[str, Share]] = {}
    for row in linear(rows(STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        path, flat = f"{PART}.{hf}", hf.replace(".", "_")
        original[path], kohya[path] = f"diffusion_model.{ldm}", f"lora_unet_{ldm.replace('.', '_')}"
        diffusers[path] = f"diffusion_model.{hf}"
        others |= dict.fromkeys((hf, f"transformer.{hf}", f"lycoris_{flat}", f"lora_unet_{flat}"), path)
        own = (original[path], ldm, kohya[path])
        if row.share is None:
            others |= dict.fromkeys(own, path)
        else:
            for key in own:
                fused.setdefault(key, {})[path] = row.share
    return Names("zimage", "Z-Image", kohya, original, diffusers, others, fused, form="diffusers")


def base(layout: ZImageLayout | None) -> Base:
    """The layers of a Z-Image; without a layout those of the published one, without shapes."""
    layers = []
    for row in linear(rows(layout or STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        kohya = f"lora_unet_{hf.replace('.', '_')}" if hf.startswith(INSIDE) else ""
        shape = row.shape if layout else ()
        asked = [f"{start}{hf}" for start in ("diffusion_model.", "transformer.", "")]
        asked.append(f"lycoris_{hf.replace('.', '_')}")
        if row.share is None:
            asked += [f"diffusion_model.{ldm}", f"lora_unet_{ldm.replace('.', '_')}"]
        layers.append(Layer(f"{PART}.{hf}", hf, ldm if row.share is None else hf, kohya, shape, tuple(asked)))
    return Base(tuple(layers), layout.text_width if layout else 0)
