"""The topology of Krea 2's transformer, and a row for every parameter, generated from the widths.

Facts: the published model (krea/Krea-2-Raw: 28 blocks of 6144 channels, heads of 128, four of which share their keys
and values) and diffusers' `Krea2Transformer2DModel`. Single files have the names of Krea's own code, in which the six
vectors that a block is modulated with are one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of

PATCH = 2
"""Latents that a token stands for, along each side."""
CHANNELS = 16
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for: Raw up to this, Turbo up to twice."""


@dataclass(frozen=True)
class Krea2Layout:
    """What tells one Krea 2 from another."""

    width: int = 6144
    blocks: int = 28
    head: int = 128
    shared: int = 1536
    """Channels of keys, and of values."""
    inner: int = 16384
    """Of the MLP."""
    time: int = 256
    """Width of what is told of the noise level."""
    text_width: int = 2560
    """Of each of the states that it reads of a token."""
    taps: int = 12
    """How many of these there are."""
    text_head: int = 128
    text_shared: int = 2560
    text_inner: int = 6912
    across: int = 2
    """Blocks that attend across the states of a token."""
    along: int = 2
    """Blocks behind them that attend along the text."""
    channels: int = CHANNELS


STANDARD = Krea2Layout()


def rows(layout: Krea2Layout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: Krea2Layout) -> Iterator[Row]:
    wide, text, patch = layout.width, layout.text_width, layout.channels * PATCH**2
    yield from both("first", "img_in", (wide, patch))
    yield from both("tmlp.0", "time_embed.linear_1", (wide, layout.time))
    yield from both("tmlp.2", "time_embed.linear_2", (wide, wide))
    yield from both("tproj.1", "time_mod_proj", (6 * wide, wide))
    yield Row("txtfusion.projector.weight", "text_fusion.projector.weight", (1, layout.taps))
    for name, count in (("layerwise_blocks", layout.across), ("refiner_blocks", layout.along)):
        for n in range(count):
            widths = text, layout.text_head, layout.text_shared, layout.text_inner
            yield from _block(f"txtfusion.{name}.{n}", f"text_fusion.{name}.{n}", *widths)
    yield Row("txtmlp.0.scale", "txt_in.norm.weight", (text,))
    yield from both("txtmlp.1", "txt_in.linear_1", (wide, text))
    yield from both("txtmlp.3", "txt_in.linear_2", (wide, wide))
    for n in range(layout.blocks):
        ldm, hf = f"blocks.{n}", f"transformer_blocks.{n}"
        yield Row(f"{ldm}.mod.lin", f"{hf}.scale_shift_table", (6 * wide,), lines=6)
        yield from _block(ldm, hf, wide, layout.head, layout.shared, layout.inner)
    yield Row("last.modulation.lin", "final_layer.scale_shift_table", (2, wide))
    yield Row("last.norm.scale", "final_layer.norm.weight", (wide,))
    yield from both("last.linear", "final_layer.linear", (patch, wide))


def _block(ldm: str, hf: str, wide: int, head: int, shared: int, inner: int) -> Iterator[Row]:
    """Attention with a gate, and an MLP, each behind a norm."""
    yield Row(f"{ldm}.prenorm.scale", f"{hf}.norm1.weight", (wide,))
    yield Row(f"{ldm}.postnorm.scale", f"{hf}.norm2.weight", (wide,))
    attention = {"wq": ("to_q", wide), "wk": ("to_k", shared), "wv": ("to_v", shared)}
    attention |= {"gate": ("to_gate", wide), "wo": ("to_out.0", wide)}
    for own, (name, out) in attention.items():
        yield Row(f"{ldm}.attn.{own}.weight", f"{hf}.attn.{name}.weight", (out, wide))
    for own, name in (("qnorm", "norm_q"), ("knorm", "norm_k")):
        yield Row(f"{ldm}.attn.qknorm.{own}.scale", f"{hf}.attn.{name}.weight", (head,))
    for name, shape in (("gate", (inner, wide)), ("up", (inner, wide)), ("down", (wide, inner))):
        yield Row(f"{ldm}.mlp.{name}.weight", f"{hf}.ff.{name}.weight", shape)


def layout_of(shapes: Shapes, file: Path | None) -> Krea2Layout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    block, text = "blocks.0", "txtfusion.layerwise_blocks.0"
    return Krea2Layout(
        width=size_of(shapes, "first.weight", 0, file),
        blocks=count_of(shapes, "blocks."),
        head=size_of(shapes, f"{block}.attn.qknorm.qnorm.scale", 0, file),
        shared=size_of(shapes, f"{block}.attn.wk.weight", 0, file),
        inner=size_of(shapes, f"{block}.mlp.up.weight", 0, file),
        time=size_of(shapes, "tmlp.0.weight", 1, file),
        text_width=size_of(shapes, "txtmlp.1.weight", 1, file),
        taps=size_of(shapes, "txtfusion.projector.weight", 1, file),
        text_head=size_of(shapes, f"{text}.attn.qknorm.qnorm.scale", 0, file),
        text_shared=size_of(shapes, f"{text}.attn.wk.weight", 0, file),
        text_inner=size_of(shapes, f"{text}.mlp.up.weight", 0, file),
        across=count_of(shapes, "txtfusion.layerwise_blocks."),
        along=count_of(shapes, "txtfusion.refiner_blocks."),
        channels=size_of(shapes, "first.weight", 1, file) // PATCH**2,
    )


CONFIG = (
    *("num_attention_heads", "attention_head_dim", "num_key_value_heads", "num_layers", "intermediate_size"),
    *("timestep_embed_dim", "in_channels", "text_hidden_dim", "num_text_layers", "text_num_attention_heads"),
    *("text_num_key_value_heads", "text_intermediate_size", "num_layerwise_text_blocks", "num_refiner_text_blocks"),
)
"""What a diffusers folder's config must say."""


def layout_from(config: Mapping[str, Any]) -> Krea2Layout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    heads, head, groups, blocks, inner, time, channels, *text = (config[key] for key in CONFIG)
    text_width, taps, text_heads, text_groups, text_inner, across, along = text
    text_head = text_width // text_heads
    return Krea2Layout(
        width=heads * head,
        blocks=blocks,
        head=head,
        shared=groups * head,
        inner=inner,
        time=time,
        text_width=text_width,
        taps=taps,
        text_head=text_head,
        text_shared=text_groups * text_head,
        text_inner=text_inner,
        across=across,
        along=along,
        channels=channels // PATCH**2,
    )


def config_of(layout: Krea2Layout) -> dict[str, Any]:
    """Arguments of diffusers' Krea2Transformer2DModel. The rotation's axes share a head as 32, 48 and 48 of 128."""
    other = layout.head // 16 * 6
    return {
        "in_channels": layout.channels * PATCH**2,
        "num_layers": layout.blocks,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "num_key_value_heads": layout.shared // layout.head,
        "intermediate_size": layout.inner,
        "timestep_embed_dim": layout.time,
        "text_hidden_dim": layout.text_width,
        "num_text_layers": layout.taps,
        "text_num_attention_heads": layout.text_width // layout.text_head,
        "text_num_key_value_heads": layout.text_shared // layout.text_head,
        "text_intermediate_size": layout.text_inner,
        "num_layerwise_text_blocks": layout.across,
        "num_refiner_text_blocks": layout.along,
        "axes_dims_rope": (layout.head - 2 * other, other, other),
    }
