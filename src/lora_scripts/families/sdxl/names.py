"""SDXL: where the weights that a LoRA may change stand in the published single file, and what kohya calls them.

Facts: Stability's generative-models `configs/inference/sd_xl_base.yaml` (320 channels, multipliers 1, 2, 4, two
residual blocks a level, transformers 2 and 10 deep), open_clip's `ResidualAttentionBlock`, and kohya's sd-scripts,
whose LoRA names are the published UNet paths with "_" for "."; they count 722 modules in the UNet's transformers, 72
and 192 in the two text encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lora_scripts.families.names import Names

TEXT_1 = "conditioner.embedders.0.transformer.text_model."
TEXT_2 = "conditioner.embedders.1.model.transformer."
UNET = "model.diffusion_model."

_DEPTHS = {4: 2, 5: 2, 7: 10, 8: 10}  # of the transformers in the UNet's input blocks
_TEXT_LAYERS = {"1": 12, "2": 32}
_RESNET = ("in_layers.2", "emb_layers.1", "out_layers.3", "skip_connection")
_LINEARS = (
    *(f"{attention}.{leaf}" for attention in ("attn1", "attn2") for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
)
_CLIP = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
# transformers' name of a layer -> open_clip's; q, k and v are the three thirds of one matrix.
_OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj.weight",
    "mlp.fc1": "mlp.c_fc.weight",
    "mlp.fc2": "mlp.c_proj.weight",
}


class Module(NamedTuple):
    """One layer that a LoRA may change."""

    path: str
    """Ours: the part, and the layer's path in it."""
    kohya: str
    ldm: str
    """The weight's key in the published single file."""
    third: int | None = None
    """Which third of the rows is meant, where q, k and v are one matrix."""


def modules() -> list[Module]:
    """Every layer of SDXL that a LoRA may change."""
    unet = [Module(f"unet.{p}", f"lora_unet_{p.replace('.', '_')}", f"{UNET}{p}.weight") for p in _unet()]
    return unet + list(_text_1()) + list(_text_2())


def table() -> dict[str, str]:
    """Our module path -> kohya's name, as `kohya.from_kohya` wants it."""
    return {module.path: module.kohya for module in modules()}


def _transformer(path: str, depth: int) -> Iterator[str]:
    yield f"{path}.proj_in"
    for n in range(depth):
        yield from (f"{path}.transformer_blocks.{n}.{leaf}" for leaf in _LINEARS)
    yield f"{path}.proj_out"


def _resnet(path: str) -> Iterator[str]:
    yield from (f"{path}.{leaf}" for leaf in _RESNET)  # skip_connection: only where the width changes


def _unet() -> Iterator[str]:
    for n in (1, 2, 4, 5, 7, 8):
        yield from _resnet(f"input_blocks.{n}.0")
        if n in _DEPTHS:
            yield from _transformer(f"input_blocks.{n}.1", _DEPTHS[n])
    yield from ("input_blocks.3.0.op", "input_blocks.6.0.op")
    yield from _resnet("middle_block.0")
    yield from _transformer("middle_block.1", 10)
    yield from _resnet("middle_block.2")
    for n in range(9):
        yield from _resnet(f"output_blocks.{n}.0")
        if n < 6:
            yield from _transformer(f"output_blocks.{n}.1", 10 if n < 3 else 2)
    yield from ("output_blocks.2.2.conv", "output_blocks.5.2.conv")


def _names(encoder: str, path: str) -> Iterator[tuple[str, str, str]]:
    """(our path, kohya's name, leaf) of every layer of a text encoder."""
    for n in range(_TEXT_LAYERS[encoder]):
        for leaf in _CLIP:
            name = f"lora_te{encoder}_text_model_encoder_layers_{n}_{leaf.replace('.', '_')}"
            yield f"{path}.encoder.layers.{n}.{leaf}", name, f"{n}.{leaf}"


def _text_1() -> Iterator[Module]:
    for path, name, leaf in _names("1", "text_encoder"):
        yield Module(path, name, f"{TEXT_1}encoder.layers.{leaf}.weight")


def _text_2() -> Iterator[Module]:
    for path, name, leaf in _names("2", "text_encoder_2"):
        number, _, layer = leaf.partition(".")
        block = f"{TEXT_2}resblocks.{number}."
        if layer in _OPEN_CLIP:
            yield Module(path, name, block + _OPEN_CLIP[layer])
        else:
            yield Module(path, name, f"{block}attn.in_proj_weight", _CLIP.index(layer))


def sdxl() -> Names:
    """SDXL."""
    return Names("sdxl", "SDXL", table(), {}, {})
