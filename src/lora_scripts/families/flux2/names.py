"""The names of the layers of FLUX.2 klein that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` are read by ComfyUI and diffusers. So are the published layout's, as
ai-toolkit (`diffusion_model.double_blocks…`) and kohya's tools (`lora_unet_double_blocks_…`) write them; q, k and v
are one layer.
"""

from __future__ import annotations

from functools import cache

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.flux2.layout import STANDARD, Flux2Layout, rows
from lora_scripts.families.names import Base, Layer, Names, Share

INSIDE = ("transformer_blocks.", "single_transformer_blocks.")
"""What the paths of layers begin with that LoRA files have names for."""


@cache
def names() -> Names:
    """klein 9B; 4B has some of these layers, and what has more is another model."""
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    fused: dict[str, dict[str, Share]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for row in linear(rows(STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        if not hf.startswith(INSIDE):
            continue
        path, flat = f"{PART}.{hf}", hf.replace(".", "_")
        diffusers[path], shapes[path] = f"transformer.{hf}", row.shape
        others |= dict.fromkeys((hf, f"diffusion_model.{hf}", f"lycoris_{flat}", f"lora_transformer_{flat}"), path)
        own = (f"diffusion_model.{ldm}", ldm, f"lora_unet_{ldm.replace('.', '_')}")
        if row.share is None:
            others |= dict.fromkeys(own, path)
        else:
            for key in own:
                fused.setdefault(key, {})[path] = row.share
                shapes[key] = row.file_shape
    return Names("flux2", "FLUX.2 klein", {}, {}, diffusers, others, fused, shapes, whole=True, form="diffusers")


def base(layout: Flux2Layout | None) -> Base:
    """The layers of a FLUX.2 klein; without a layout those of 9B, without shapes."""
    layers = []
    for row in linear(rows(layout or STANDARD)):
        hf, ldm, flat = stem(row.hf), stem(row.ldm), stem(row.hf).replace(".", "_")
        asked = [f"transformer.{hf}", f"lycoris_{flat}", f"lora_transformer_{flat}"]
        if row.share is None:
            asked += [f"diffusion_model.{ldm}", ldm, f"lora_unet_{ldm.replace('.', '_')}"]
        shape = row.shape if layout else ()
        layers.append(Layer(f"{PART}.{hf}", hf, ldm if row.share is None else hf, "", shape, tuple(asked)))
    return Base(tuple(layers), layout.text_width if layout else 0)
