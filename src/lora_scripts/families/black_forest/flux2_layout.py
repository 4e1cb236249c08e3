"""The topology of FLUX.2's transformer, and a row for every parameter, generated from the widths.

Facts: Black Forest Labs' flux2 and diffusers' `Flux2Transformer2DModel`: no biases, one modulation for all blocks of a
kind, q, k and v as one matrix in the published file, in the single blocks together with the first layer of the MLP. dev
is told its guidance, klein is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.black_forest.streams import attention
from lora_scripts.families.sd.rows import Row, Shapes, count_of, size_of

TIME = 256
"""Width of what is told of the noise level."""
GUIDED = "guidance_in.in_layer.weight"
"""Which a file has that is told its guidance."""
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for."""


@dataclass(frozen=True)
class Flux2Layout:
    """What tells one FLUX.2 from another."""

    width: int = 4096
    double: int = 8
    single: int = 24
    head: int = 128
    text_width: int = 12288
    """Of the states that it reads: three of the text encoder's side by side."""
    channels: int = 128
    """Of the packed latents."""
    inner: int = 12288
    """Of the MLP, 3 x the width."""
    guidance: bool = False
    """Whether it is told how close to the prompt to draw."""


KLEIN = Flux2Layout()
"""9B; 4B has 3072 channels, 5 double and 20 single blocks."""
DEV = Flux2Layout(width=6144, single=48, text_width=15360, inner=18432, guidance=True)


def rows(layout: Flux2Layout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: Flux2Layout) -> Iterator[Row]:
    wide, inner = layout.width, layout.inner
    yield _row("img_in", "x_embedder", (wide, layout.channels))
    yield _row("txt_in", "context_embedder", (wide, layout.text_width))
    for told, embedder in (("time", "timestep"), ("guidance", "guidance"))[: 1 + layout.guidance]:
        at = f"time_guidance_embed.{embedder}_embedder"
        yield _row(f"{told}_in.in_layer", f"{at}.linear_1", (wide, TIME))
        yield _row(f"{told}_in.out_layer", f"{at}.linear_2", (wide, wide))
    for name, sets in (("double_stream_modulation_img", 2), ("double_stream_modulation_txt", 2)):
        yield _row(f"{name}.lin", f"{name}.linear", (3 * sets * wide, wide))
    yield _row("single_stream_modulation.lin", "single_stream_modulation.linear", (3 * wide, wide))
    for n in range(layout.double):
        ldm, hf = f"double_blocks.{n}", f"transformer_blocks.{n}"
        for stream, ff in (("img", "ff"), ("txt", "ff_context")):
            yield from attention(lambda *layer: [_row(*layer)], stream, ldm, hf, wide, layout.head)
            yield _row(f"{ldm}.{stream}_mlp.0", f"{hf}.{ff}.linear_in", (2 * inner, wide))
            yield _row(f"{ldm}.{stream}_mlp.2", f"{hf}.{ff}.linear_out", (wide, inner))
    for n in range(layout.single):
        ldm, hf = f"single_blocks.{n}", f"single_transformer_blocks.{n}.attn"
        yield _row(f"{ldm}.linear1", f"{hf}.to_qkv_mlp_proj", (3 * wide + 2 * inner, wide))
        yield _row(f"{ldm}.linear2", f"{hf}.to_out", (wide, wide + inner))
        for norm, leaf in (("query_norm", "q"), ("key_norm", "k")):
            yield Row(f"{ldm}.norm.{norm}.scale", f"{hf}.norm_{leaf}.weight", (layout.head,))
    # Published with the shift first, built with the scale first.
    last = _row("final_layer.adaLN_modulation.1", "norm_out.linear", (2 * wide, wide))
    yield last._replace(swapped=True)
    yield _row("final_layer.linear", "proj_out", (layout.channels, wide))


def _row(ldm: str, hf: str, shape: tuple[int, ...]) -> Row:
    return Row(f"{ldm}.weight", f"{hf}.weight", shape)


def layout_of(shapes: Shapes, file: Path | None) -> Flux2Layout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return Flux2Layout(
        width=size_of(shapes, "img_in.weight", 0, file),
        double=count_of(shapes, "double_blocks."),
        single=count_of(shapes, "single_blocks."),
        head=size_of(shapes, "double_blocks.0.img_attn.norm.query_norm.scale", 0, file),
        text_width=size_of(shapes, "txt_in.weight", 1, file),
        channels=size_of(shapes, "img_in.weight", 1, file),
        inner=size_of(shapes, "double_blocks.0.img_mlp.2.weight", 1, file),
        guidance=GUIDED in shapes,
    )


CONFIG = (
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "num_single_layers",
    "joint_attention_dim",
    "in_channels",
)
"""What a diffusers folder's config must say."""


def layout_from(config: Mapping[str, Any]) -> Flux2Layout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    heads, head, double, single, text_width, channels = (config[key] for key in CONFIG)
    inner = int(heads * head * config.get("mlp_ratio", 3.0))
    guidance = bool(config.get("guidance_embeds", True))
    return Flux2Layout(heads * head, double, single, head, text_width, channels, inner, guidance)


def config_of(layout: Flux2Layout) -> dict[str, Any]:
    """Arguments of diffusers' Flux2Transformer2DModel. The rotation's four axes share a head in equal parts."""
    return {
        "in_channels": layout.channels,
        "num_layers": layout.double,
        "num_single_layers": layout.single,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "joint_attention_dim": layout.text_width,
        "timestep_guidance_channels": TIME,
        "mlp_ratio": layout.inner / layout.width,
        "axes_dims_rope": (layout.head // 4,) * 4,
        "guidance_embeds": layout.guidance,
    }
