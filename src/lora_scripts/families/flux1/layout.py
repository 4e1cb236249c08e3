"""The topology of FLUX.1's transformer, and a row for every parameter, generated from the widths.

Facts: Black Forest Labs' flux and diffusers' `FluxTransformer2DModel`: each block has its own modulation. dev is told
how close to the prompt it shall draw (`guidance_in`), schnell is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.black_forest.flux1_blocks import CHANNELS, axes, double, single
from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of

TIME = 256
"""Width of what is told of the noise level."""


@dataclass(frozen=True)
class Flux1Layout:
    """What tells one FLUX.1 from another."""

    width: int = 3072
    double: int = 19
    single: int = 38
    head: int = 128
    text_width: int = 4096
    """Of T5's states."""
    pooled_width: int = 768
    """Of CLIP's pooled state."""
    channels: int = 4 * CHANNELS
    """Of the packed latents."""
    guidance: bool = True
    """Whether it is told how close to the prompt it shall draw."""


STANDARD = Flux1Layout()
"""dev."""


def rows(layout: Flux1Layout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: Flux1Layout) -> Iterator[Row]:
    wide = layout.width
    yield from both("img_in", "x_embedder", (wide, layout.channels))
    yield from both("txt_in", "context_embedder", (wide, layout.text_width))
    told = {"time_in": ("timestep_embedder", TIME), "vector_in": ("text_embedder", layout.pooled_width)}
    told |= {"guidance_in": ("guidance_embedder", TIME)} if layout.guidance else {}
    for ldm, (hf, width) in told.items():
        yield from both(f"{ldm}.in_layer", f"time_text_embed.{hf}.linear_1", (wide, width))
        yield from both(f"{ldm}.out_layer", f"time_text_embed.{hf}.linear_2", (wide, wide))
    for n in range(layout.double):
        yield from double(n, wide, layout.head, modulated=True)
    for n in range(layout.single):
        yield from single(n, wide, layout.head, modulated=True)
    # Published with the shift first, built with the scale first.
    last = both("final_layer.adaLN_modulation.1", "norm_out.linear", (2 * wide, wide))
    yield from (row._replace(swapped=True) for row in last)
    yield from both("final_layer.linear", "proj_out", (layout.channels, wide))


def layout_of(shapes: Shapes, file: Path | None) -> Flux1Layout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return Flux1Layout(
        width=size_of(shapes, "img_in.weight", 0, file),
        double=count_of(shapes, "double_blocks."),
        single=count_of(shapes, "single_blocks."),
        head=size_of(shapes, "double_blocks.0.img_attn.norm.query_norm.scale", 0, file),
        text_width=size_of(shapes, "txt_in.weight", 1, file),
        pooled_width=size_of(shapes, "vector_in.in_layer.weight", 1, file),
        channels=size_of(shapes, "img_in.weight", 1, file),
        guidance=any(key.startswith("guidance_in.") for key in shapes),
    )


CONFIG = (
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "num_single_layers",
    "joint_attention_dim",
    "pooled_projection_dim",
    "in_channels",
)
"""What a diffusers folder's config must say."""


def layout_from(config: Mapping[str, Any]) -> Flux1Layout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    heads, head, double, single, text_width, pooled_width, channels = (config[key] for key in CONFIG)
    guidance = bool(config.get("guidance_embeds", False))
    return Flux1Layout(heads * head, double, single, head, text_width, pooled_width, channels, guidance)


def config_of(layout: Flux1Layout) -> dict[str, Any]:
    """Arguments of diffusers' FluxTransformer2DModel."""
    return {
        "in_channels": layout.channels,
        "num_layers": layout.double,
        "num_single_layers": layout.single,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "joint_attention_dim": layout.text_width,
        "pooled_projection_dim": layout.pooled_width,
        "guidance_embeds": layout.guidance,
        "axes_dims_rope": axes(layout.head),
    }
