"""The names of the layers of Qwen-Image that a LoRA may change.

Facts: its published layout is diffusers'. Behind `transformer.` (diffusers), `diffusion_model.` (ai-toolkit), nothing
(DiffSynth) and, flat, `lora_unet_` (musubi-tuner) and `lycoris_` ComfyUI asks for them; diffusers reads all but the
last.
"""

from __future__ import annotations

from functools import cache

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.names import Base, Layer, Names
from lora_scripts.families.qwen_image.layout import STANDARD, QwenImageLayout, rows

INSIDE = ("transformer_blocks.",)
"""What the paths of layers begin with that are trained."""
_SHARED = 38
"""Blocks of the largest other model whose attention has these names."""


@cache
def names() -> Names:
    """Qwen-Image, as published: a narrower or shallower model has these layers or some of them, and what has more is
    another model."""
    kohya: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    for row in linear(rows(STANDARD)):
        name = stem(row.hf)
        path, flat = f"{PART}.{name}", name.replace(".", "_")
        kohya[path], diffusers[path] = f"lora_unet_{flat}", f"transformer.{name}"
        others |= dict.fromkeys((name, f"diffusion_model.{name}", f"lycoris_{flat}"), path)
    stems = {**others, **{stem: path for table in (kohya, diffusers) for path, stem in table.items()}}
    own = frozenset(name for name, path in stems.items() if _own(path))
    return Names("qwen_image", "Qwen-Image", kohya, {}, diffusers, others, whole=True, own=own, form="diffusers")


def _own(path: str) -> bool:
    """Whether no other model has a layer of this name."""
    words = path.split(".")
    if words[1] != INSIDE[0].rstrip("."):
        return False
    return words[3] != "attn" or int(words[2]) >= _SHARED


def base(layout: QwenImageLayout | None) -> Base:
    """The layers of a Qwen-Image; without a layout those of the published one, without shapes."""
    layers = []
    for row in linear(rows(layout or STANDARD)):
        name = stem(row.hf)
        flat = name.replace(".", "_")
        asked = (f"diffusion_model.{name}", f"transformer.{name}", name, f"lora_unet_{flat}", f"lycoris_{flat}")
        layers.append(Layer(f"{PART}.{name}", name, name, f"lora_unet_{flat}", row.shape if layout else (), asked))
    return Base(tuple(layers), layout.text_width if layout else 0)
