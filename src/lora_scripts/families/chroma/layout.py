"""The topology of Chroma's transformer, and a row for every parameter, generated from the widths.

Facts: lodestones' flow and diffusers' `ChromaTransformer2DModel`: the blocks of FLUX.1 without modulations of their
own. What those say there, one network says here for all blocks, from the noise level and the number of the place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.black_forest.flux1_blocks import CHANNELS, axes, double, single
from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of

MODULATION = "distilled_guidance_layer."
"""What the keys of that network begin with."""
_TOLD, _HIDDEN, _LAYERS = 64, 5120, 5
"""Its published widths, which the config of a folder need not say."""


@dataclass(frozen=True)
class ChromaLayout:
    """What tells one Chroma from another."""

    width: int = 3072
    double: int = 19
    single: int = 38
    head: int = 128
    text_width: int = 4096
    """Of T5's states."""
    channels: int = 4 * CHANNELS
    """Of the packed latents."""
    told: int = _TOLD
    """Numbers that the network of modulations is told of noise level and place."""
    hidden: int = _HIDDEN
    """Its width."""
    layers: int = _LAYERS


STANDARD = ChromaLayout()


def rows(layout: ChromaLayout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: ChromaLayout) -> Iterator[Row]:
    wide, hidden, own = layout.width, layout.hidden, MODULATION.rstrip(".")
    yield from both("img_in", "x_embedder", (wide, layout.channels))
    yield from both("txt_in", "context_embedder", (wide, layout.text_width))
    yield from both(f"{own}.in_proj", f"{own}.in_proj", (hidden, layout.told))
    for n in range(layout.layers):
        yield from both(f"{own}.layers.{n}.in_layer", f"{own}.layers.{n}.linear_1", (hidden, hidden))
        yield from both(f"{own}.layers.{n}.out_layer", f"{own}.layers.{n}.linear_2", (hidden, hidden))
        yield Row(f"{own}.norms.{n}.scale", f"{own}.norms.{n}.weight", (hidden,))
    yield from both(f"{own}.out_proj", f"{own}.out_proj", (wide, hidden))
    for n in range(layout.double):
        yield from double(n, wide, layout.head, modulated=False)
    for n in range(layout.single):
        yield from single(n, wide, layout.head, modulated=False)
    yield from both("final_layer.linear", "proj_out", (layout.channels, wide))


def layout_of(shapes: Shapes, file: Path | None) -> ChromaLayout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return ChromaLayout(
        width=size_of(shapes, "img_in.weight", 0, file),
        double=count_of(shapes, "double_blocks."),
        single=count_of(shapes, "single_blocks."),
        head=size_of(shapes, "double_blocks.0.img_attn.norm.query_norm.scale", 0, file),
        text_width=size_of(shapes, "txt_in.weight", 1, file),
        channels=size_of(shapes, "img_in.weight", 1, file),
        told=size_of(shapes, f"{MODULATION}in_proj.weight", 1, file),
        hidden=size_of(shapes, f"{MODULATION}in_proj.weight", 0, file),
        layers=count_of(shapes, f"{MODULATION}layers."),
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
_MORE = {
    "approximator_num_channels": _TOLD,
    "approximator_hidden_dim": _HIDDEN,
    "approximator_layers": _LAYERS,
}
"""What it may."""


def layout_from(config: Mapping[str, Any]) -> ChromaLayout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    heads, head, double_blocks, single_blocks, text_width, channels = (config[key] for key in CONFIG)
    more = (config.get(key, usual) for key, usual in _MORE.items())
    return ChromaLayout(heads * head, double_blocks, single_blocks, head, text_width, channels, *more)


def config_of(layout: ChromaLayout) -> dict[str, Any]:
    """Arguments of diffusers' ChromaTransformer2DModel."""
    return {
        "in_channels": layout.channels,
        "num_layers": layout.double,
        "num_single_layers": layout.single,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "joint_attention_dim": layout.text_width,
        "axes_dims_rope": axes(layout.head),
        "approximator_num_channels": layout.told,
        "approximator_hidden_dim": layout.hidden,
        "approximator_layers": layout.layers,
    }
