"""The names of the layers of Qwen-Image-2.1 that a LoRA may change, by the tables of the layout.

Facts: ComfyUI (its `comfy/lora.py`, as read in the autumn of 2026) asks for diffusers' names behind `transformer.`,
nothing or, flat, `lycoris_`, gate and up of an MLP as halves of its one matrix among them; behind `diffusion_model.`
and, flat, `lora_unet_` for those of its own layout, in which the two are `gate_up`. diffusers reads its own behind
`transformer.` or `diffusion_model.`.
"""

from __future__ import annotations

from functools import cache

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.names import Base, Layer, Names, Share, flat
from lora_scripts.families.qwen_image21.layout import STANDARD, QwenImage21Layout, rows

INSIDE = ("transformer_blocks.", "txt_in.", "img_in", "time_text_embed.", "modulation.", "norm_out.", "proj_out")
"""What the paths of layers begin with that are trained: all."""
_OWN = (".img_mlp.", ".modulation.", ".txt_in.")
"""In the paths of layers whose names no other model has."""


@cache
def names() -> Names:
    """Qwen-Image-2.1, as published: a narrower or shallower model has these layers or some of them. The attention of
    other models has the same names."""
    kohya: dict[str, str] = {}
    original: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    fused: dict[str, dict[str, Share]] = {}
    own: set[str] = set()
    for row in linear(rows(STANDARD)):
        hf, ldm = stem(row.hf), stem(row.ldm)
        path = f"{PART}.{hf}"
        kohya[path], original[path] = flat("lora_unet_", ldm), f"diffusion_model.{ldm}"
        diffusers[path] = f"transformer.{hf}"
        spelt = (hf, f"diffusion_model.{hf}", flat("lycoris_", hf), flat("lora_unet_", hf))
        published = (original[path], kohya[path], ldm)
        others |= dict.fromkeys(spelt, path)
        if row.share is None:
            others |= dict.fromkeys(published, path)
        else:
            for key in published:
                fused.setdefault(key, {})[path] = row.share
        own |= {diffusers[path], *spelt, *published} if any(mark in path for mark in _OWN) else set()
    return Names(
        "qwen_image21",
        "Qwen-Image-2.1",
        kohya,
        original,
        diffusers,
        others,
        fused,
        own=frozenset(own),
        form="diffusers",
    )


def base(layout: QwenImage21Layout | None) -> Base:
    """The layers of a Qwen-Image-2.1; without a layout those of the published one, without shapes."""
    layers = []
    for row in linear(rows(layout or STANDARD)):
        hf = stem(row.hf)
        whole = not hf.endswith((".img_mlp.gate_layer", ".img_mlp.proj"))
        asked = [f"transformer.{hf}", hf, flat("lycoris_", hf)]
        asked += [f"diffusion_model.{hf}", flat("lora_unet_", hf)] if whole else []
        kohya, shape = flat("lora_unet_", hf) if whole else "", row.shape if layout else ()
        layers.append(Layer(f"{PART}.{hf}", hf, hf, kohya, shape, tuple(asked)))
    return Base(tuple(layers), layout.text_width if layout else 0)
