"""The names of the layers of FLUX.2 klein that a LoRA may change, by the tables of the layout.

Facts: diffusers' names behind `transformer.` are read by ComfyUI and diffusers. So are the published layout's, as
ai-toolkit (`diffusion_model.double_blocks…`) and kohya's tools (`lora_unet_double_blocks_…`) write them; q, k and v
are one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from lora_scripts.families.flux2.layout import STANDARD, Flux2Layout, rows
from lora_scripts.families.names import Base, Layer, Names
from lora_scripts.families.sd.rows import Row

PART = "transformer"
INSIDE = ("transformer_blocks.", "single_transformer_blocks.")
"""What the paths of layers begin with that LoRA files have names for."""


class Module(NamedTuple):
    """One layer in the published single file."""

    path: str
    key: str
    """Without the file's prefix, and without `.weight`."""
    third: int | None


def weights(layout: Flux2Layout = STANDARD) -> Iterator[Module]:
    """Every linear layer, but the one whose halves stand otherwise in the file."""
    for row in _linear(layout):
        if not row.swapped:
            yield Module(f"{PART}.{_stem(row.hf)}", _stem(row.ldm), row.third)


@cache
def flux2() -> Names:
    """klein 9B; 4B has some of these layers, and what has more is another model."""
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    fused: dict[str, tuple[str, ...]] = {}
    for row in _linear(STANDARD):
        hf, ldm = _stem(row.hf), _stem(row.ldm)
        if not hf.startswith(INSIDE):
            continue
        path, flat = f"{PART}.{hf}", hf.replace(".", "_")
        diffusers[path] = f"transformer.{hf}"
        others |= dict.fromkeys((hf, f"diffusion_model.{hf}", f"lycoris_{flat}", f"lora_transformer_{flat}"), path)
        own = (f"diffusion_model.{ldm}", ldm, f"lora_unet_{ldm.replace('.', '_')}")
        if row.third is None:
            others |= dict.fromkeys(own, path)
        else:
            fused |= {stem: (*fused.get(stem, ()), path) for stem in own}
    return Names("flux2", "FLUX.2 klein", {}, {}, diffusers, others, fused, whole=True, form="diffusers")


def base(layout: Flux2Layout | None) -> Base:
    """The layers of a FLUX.2 klein; without a layout those of 9B, without shapes."""
    layers = []
    for row in _linear(layout or STANDARD):
        hf, ldm, flat = _stem(row.hf), _stem(row.ldm), _stem(row.hf).replace(".", "_")
        asked = [f"transformer.{hf}", f"lycoris_{flat}", f"lora_transformer_{flat}"]
        if row.third is None:
            asked += [f"diffusion_model.{ldm}", ldm, f"lora_unet_{ldm.replace('.', '_')}"]
        shape = row.shape if layout else ()
        layers.append(Layer(f"{PART}.{hf}", hf, ldm if row.third is None else hf, "", shape, tuple(asked)))
    return Base(tuple(layers), layout.text_width if layout else 0)


def _linear(layout: Flux2Layout) -> Iterator[Row]:
    return (row for row in rows(layout) if row.hf.endswith(".weight") and len(row.shape) == 2)


def _stem(key: str) -> str:
    return key.removesuffix(".weight")
