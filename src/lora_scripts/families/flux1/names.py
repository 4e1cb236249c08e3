"""The names of the layers of FLUX.1 that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` are read by ComfyUI and diffusers. So are kohya's on the published layout
(`lora_unet_double_blocks_…`), in which q, k and v are one layer, and in the single blocks the MLP with them; ComfyUI
reads these behind `diffusion_model.`, too.
"""

from __future__ import annotations

from functools import cache

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.flux1.layout import STANDARD, Flux1Layout, rows
from lora_scripts.families.names import Base, Layer, Names, Share

INSIDE = ("transformer_blocks.", "single_transformer_blocks.")
"""What the paths of layers begin with that LoRA files have names for."""


@cache
def names() -> Names:
    """FLUX.1, as published: a narrower or shallower model has these layers or some of them."""
    kohya: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    fused: dict[str, dict[str, Share]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for row in linear(rows(STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        if not hf.startswith(INSIDE):
            continue
        path, flat = f"{PART}.{hf}", hf.replace(".", "_")
        diffusers[path], kohya[path], shapes[path] = f"transformer.{hf}", _kohya(ldm), row.shape
        others |= dict.fromkeys((hf, f"diffusion_model.{hf}", f"lycoris_{flat}", f"lora_transformer_{flat}"), path)
        for key in (f"diffusion_model.{ldm}", ldm, _kohya(ldm)):
            if row.share is None:
                others[key] = path
            else:
                fused.setdefault(key, {})[path] = row.share
                shapes[key] = row.file_shape
    return Names("flux1", "FLUX.1", kohya, {}, diffusers, others, fused, shapes, form="diffusers")


def base(layout: Flux1Layout | None) -> Base:
    """The layers of a FLUX.1; without a layout those of the published one, without shapes."""
    layers = []
    for row in linear(rows(layout or STANDARD)):
        hf, ldm, flat = stem(row.hf), stem(row.ldm), stem(row.hf).replace(".", "_")
        asked = [f"transformer.{hf}", f"lycoris_{flat}", f"lora_transformer_{flat}"]
        if row.share is None:
            asked += [f"diffusion_model.{ldm}", ldm, _kohya(ldm)]
        shape = row.shape if layout else ()
        layers.append(Layer(f"{PART}.{hf}", hf, ldm if row.share is None else hf, "", shape, tuple(asked)))
    return Base(tuple(layers), layout.text_width if layout else 0)


def _kohya(ldm: str) -> str:
    return f"lora_unet_{ldm.replace('.', '_')}"
