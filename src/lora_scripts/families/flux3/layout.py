"""The topology of FLUX.3's transformer, and a row for every parameter, generated from the widths.

Facts: diffusers' `Flux3Transformer2DModel` and its converter of published single files. No biases. Blocks of one mode
(picture, reference pictures, text), in which only its own tokens see each other, stand before blocks that all share; a
block computes attention and MLP from the same input, and the modulations are shared by all blocks of a kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.sd.rows import Row, Shapes, count_of, size_of

TIME = 256
"""Width of what is told of the noise level."""
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for."""
JUMPS = "ref_time_in.in_layer.weight"
"""Which a file has that is told where each step leads, as one distilled to few steps is."""
_MODES = ("image", "image_cond")
"""The picture that is drawn, and pictures that it is drawn after."""


@dataclass(frozen=True)
class Flux3Layout:
    """What tells one FLUX.3 from another."""

    width: int = 3072
    early: int = 5
    """Blocks of each mode, and of the text."""
    single: int = 28
    head: int = 128
    text_width: int = 20480
    """Of the states that it reads: eight of the text encoder's side by side."""
    channels: int = 128
    """Of the packed latents."""
    inner: int = 9216
    """Of the MLP, 3 x the width."""
    jumps: bool = False
    """Whether it is told where each step leads."""


STANDARD = Flux3Layout()


def rows(layout: Flux3Layout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: Flux3Layout) -> Iterator[Row]:
    wide = layout.width
    for told, embedder in (("time", "timestep"), ("ref_time", "target_timestep"))[: 1 + layout.jumps]:
        yield _row(f"{told}_in.in_layer", f"{embedder}_embedder.linear_1", (wide, TIME))
        yield _row(f"{told}_in.out_layer", f"{embedder}_embedder.linear_2", (wide, wide))
    for name in ("early_stream_modulations", "single_stream_modulations"):
        for mode in (*_MODES, "txt"):
            yield _row(f"{name}.{mode}.lin", f"{name}.{mode}.linear", (3 * wide, wide))
    for mode in _MODES:
        yield _row(f"emb_in.{mode}", f"x_embedders.{mode}", (wide, layout.channels))
    yield _row("txt_in", "context_embedder", (wide, layout.text_width))
    for mode in _MODES:
        for n in range(layout.early):
            yield from _block(f"content_mode_blocks.{mode}.{n}", f"mode_blocks.{mode}.{n}", layout)
    for n in range(layout.early):
        yield from _block(f"txt_mode_blocks.{n}", f"txt_mode_blocks.{n}", layout)
    for n in range(layout.single):
        yield from _block(f"single_blocks.{n}", f"single_transformer_blocks.{n}", layout)
    # Published with the shift first, built with the scale first.
    last = _row("final_layer.image.adaLN_modulation.1", "norm_out.linear", (2 * wide, wide))
    yield last._replace(swapped=True)
    yield _row("final_layer.image.linear", "proj_out", (layout.channels, wide))


def _block(ldm: str, hf: str, layout: Flux3Layout) -> Iterator[Row]:
    wide, inner = layout.width, layout.inner
    for own, name in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("attn_out", "to_out.0")):
        yield _row(f"{ldm}.{own}", f"{hf}.attn.{name}", (wide, wide))
    for own, name in (("query_norm", "norm_q"), ("key_norm", "norm_k")):
        yield Row(f"{ldm}.norm.{own}.scale", f"{hf}.attn.{name}.weight", (layout.head,))
    yield _row(f"{ldm}.mlp_in", f"{hf}.ff.linear_in", (2 * inner, wide))
    yield _row(f"{ldm}.mlp_out", f"{hf}.ff.linear_out", (wide, inner))


def _row(ldm: str, hf: str, shape: tuple[int, ...]) -> Row:
    return Row(f"{ldm}.weight", f"{hf}.weight", shape)


def layout_of(shapes: Shapes, file: Path | None) -> Flux3Layout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return Flux3Layout(
        width=size_of(shapes, "emb_in.image.weight", 0, file),
        early=count_of(shapes, "txt_mode_blocks."),
        single=count_of(shapes, "single_blocks."),
        head=size_of(shapes, "txt_mode_blocks.0.norm.query_norm.scale", 0, file),
        text_width=size_of(shapes, "txt_in.weight", 1, file),
        channels=size_of(shapes, "emb_in.image.weight", 1, file),
        inner=size_of(shapes, "txt_mode_blocks.0.mlp_out.weight", 1, file),
        jumps=JUMPS in shapes,
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


def layout_from(config: Mapping[str, Any]) -> Flux3Layout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    heads, head, early, single, text_width, channels = (config[key] for key in CONFIG)
    inner = int(heads * head * config.get("mlp_ratio", 3.0))
    return Flux3Layout(heads * head, early, single, head, text_width, channels, inner, bool(config.get("flow_map")))


def config_of(layout: Flux3Layout) -> dict[str, Any]:
    """Arguments of diffusers' Flux3Transformer2DModel. The rotation's four axes share a head in equal parts."""
    return {
        "in_channels": layout.channels,
        "cond_in_channels": layout.channels,
        "num_layers": layout.early,
        "num_single_layers": layout.single,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "joint_attention_dim": layout.text_width,
        "timestep_channels": TIME,
        "mlp_ratio": layout.inner / layout.width,
        "axes_dims_rope": (layout.head // 4,) * 4,
        "flow_map": layout.jumps,
    }
