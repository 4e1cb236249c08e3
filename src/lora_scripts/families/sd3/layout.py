"""The topology of Stable Diffusion 3's transformer, and a row for every parameter, generated from the widths.

Facts: Stability's `mmditx.py` and diffusers' `SD3Transformer2DModel`. In every block picture and text have layers of
their own and meet in its attention; 3.5 has norms of q and k, and the first blocks of 3.5 Medium attend to the picture
once more. Behind the last block nobody reads the text, so what would change it there is not there. q, k and v are one
matrix in the published file. Where a token stands is a table, of which the middle is read: it is a number of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

from lora_scripts.families.names import THIRDS
from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of

TIME = 256
"""Width of what is told of the noise level."""
MLP = 4
"""Times the width: its MLPs."""
PATCH = 2
"""Latents that a token stands for, along each side."""
CHANNELS = 16
HEAD = 64
"""Channels of an attention head, in every published one."""
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for."""
CLIP_PARTS = (3, 5)
"""The pooled state is CLIP-L's and CLIP-G's side by side: of 2048 numbers, 768 and 1280."""


@dataclass(frozen=True)
class Sd3Layout:
    """What tells one Stable Diffusion 3 from another."""

    width: int = 2432
    blocks: int = 38
    dual: tuple[int, ...] = ()
    """The blocks that attend to the picture once more."""
    normed: bool = True
    """The norms of q and k."""
    head: int = HEAD
    text_width: int = 4096
    """Of T5's states; CLIP's, side by side, are filled up to it."""
    pooled_width: int = 2048
    channels: int = CHANNELS
    positions: int = 192
    """Tokens along a side of the largest picture that has places."""

    @property
    def clip_widths(self) -> tuple[int, int]:
        """Of CLIP-L and CLIP-G."""
        first, second = CLIP_PARTS
        narrow = self.pooled_width * first // (first + second)
        return narrow, self.pooled_width - narrow


LARGE = Sd3Layout()
"""3.5 Large."""
MEDIUM = replace(LARGE, width=1536, blocks=24, dual=tuple(range(13)), positions=384)
"""3.5 Medium."""
FIRST = replace(LARGE, width=1536, blocks=24, normed=False)
"""3 Medium."""


def rows(layout: Sd3Layout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: Sd3Layout) -> Iterator[Row]:
    wide = layout.width
    yield Row("pos_embed", "pos_embed.pos_embed", (1, layout.positions**2, wide))
    yield from both("x_embedder.proj", "pos_embed.proj", (wide, layout.channels, PATCH, PATCH))
    yield from both("context_embedder", "context_embedder", (wide, layout.text_width))
    for ldm, hf, width in (("t", "timestep", TIME), ("y", "text", layout.pooled_width)):
        yield from both(f"{ldm}_embedder.mlp.0", f"time_text_embed.{hf}_embedder.linear_1", (wide, width))
        yield from both(f"{ldm}_embedder.mlp.2", f"time_text_embed.{hf}_embedder.linear_2", (wide, wide))
    for n in range(layout.blocks):
        yield from _block(layout, n)
    yield from _swapped("final_layer.adaLN_modulation.1", "norm_out.linear", (2 * wide, wide))
    yield from both("final_layer.linear", "proj_out", (layout.channels * PATCH**2, wide))


def _block(layout: Sd3Layout, n: int) -> Iterator[Row]:
    wide, ldm, hf = layout.width, f"joint_blocks.{n}", f"transformer_blocks.{n}"
    picture, text = f"{ldm}.x_block", f"{ldm}.context_block"
    last, dual = n == layout.blocks - 1, n in layout.dual
    yield from _attention(layout, f"{picture}.attn", f"{hf}.attn", ("to_q", "to_k", "to_v"), "norm_")
    yield from both(f"{picture}.attn.proj", f"{hf}.attn.to_out.0", (wide, wide))
    yield from _attention(
        layout, f"{text}.attn", f"{hf}.attn", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_"
    )
    if dual:
        yield from _attention(layout, f"{picture}.attn2", f"{hf}.attn2", ("to_q", "to_k", "to_v"), "norm_")
        yield from both(f"{picture}.attn2.proj", f"{hf}.attn2.to_out.0", (wide, wide))
    yield from both(f"{picture}.adaLN_modulation.1", f"{hf}.norm1.linear", ((9 if dual else 6) * wide, wide))
    yield from _mlp(layout, f"{picture}.mlp", f"{hf}.ff")
    if last:
        yield from _swapped(f"{text}.adaLN_modulation.1", f"{hf}.norm1_context.linear", (2 * wide, wide))
        return
    yield from both(f"{text}.adaLN_modulation.1", f"{hf}.norm1_context.linear", (6 * wide, wide))
    yield from both(f"{text}.attn.proj", f"{hf}.attn.to_add_out", (wide, wide))
    yield from _mlp(layout, f"{text}.mlp", f"{hf}.ff_context")


def _attention(layout: Sd3Layout, ldm: str, hf: str, leaves: tuple[str, ...], norm: str) -> Iterator[Row]:
    for share, leaf in zip(THIRDS, leaves, strict=True):
        whole = both(f"{ldm}.qkv", f"{hf}.{leaf}", (layout.width, layout.width))
        yield from (row._replace(share=share) for row in whole)
    for leaf in "qk" if layout.normed else "":
        yield Row(f"{ldm}.ln_{leaf}.weight", f"{hf}.{norm}{leaf}.weight", (layout.head,))


def _mlp(layout: Sd3Layout, ldm: str, hf: str) -> Iterator[Row]:
    wide, inner = layout.width, MLP * layout.width
    yield from both(f"{ldm}.fc1", f"{hf}.net.0.proj", (inner, wide))
    yield from both(f"{ldm}.fc2", f"{hf}.net.2", (wide, inner))


def _swapped(ldm: str, hf: str, shape: tuple[int, int]) -> Iterator[Row]:
    """Published with the shift first, built with the scale first."""
    return (row._replace(swapped=True) for row in both(ldm, hf, shape))


def layout_of(shapes: Shapes, file: Path | None) -> Sd3Layout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    blocks, norm = count_of(shapes, "joint_blocks."), "joint_blocks.0.x_block.attn.ln_q.weight"
    width = size_of(shapes, "x_embedder.proj.weight", 0, file)
    return Sd3Layout(
        width=width,
        blocks=blocks,
        dual=tuple(n for n in range(blocks) if f"joint_blocks.{n}.x_block.attn2.qkv.weight" in shapes),
        normed=norm in shapes,
        head=size_of(shapes, norm, 0, file) if norm in shapes else HEAD,
        text_width=size_of(shapes, "context_embedder.weight", 1, file),
        pooled_width=size_of(shapes, "y_embedder.mlp.0.weight", 1, file),
        channels=size_of(shapes, "x_embedder.proj.weight", 1, file),
        positions=isqrt(size_of(shapes, "pos_embed", 1, file)),
    )


CONFIG = (
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "joint_attention_dim",
    "pooled_projection_dim",
    "in_channels",
    "pos_embed_max_size",
)
"""What a diffusers folder's config must say."""


def layout_from(config: Mapping[str, Any]) -> Sd3Layout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not, or other ones."""
    heads, head, blocks, text_width, pooled_width, channels, positions = (config[key] for key in CONFIG)
    width, norm, patch = heads * head, config.get("qk_norm"), config.get("patch_size", PATCH)
    inner, out = config.get("caption_projection_dim", width), config.get("out_channels", channels)
    if inner != width or patch != PATCH or out not in (channels, None) or norm not in ("rms_norm", None):
        raise ValueError(f"caption_projection_dim {inner}, patch_size {patch}, out_channels {out}, qk_norm {norm}")
    dual = tuple(config.get("dual_attention_layers") or ())
    return Sd3Layout(width, blocks, dual, norm is not None, head, text_width, pooled_width, channels, positions)


def config_of(layout: Sd3Layout) -> dict[str, Any]:
    """Arguments of diffusers' SD3Transformer2DModel."""
    return {
        "sample_size": SIDE // 8,
        "patch_size": PATCH,
        "in_channels": layout.channels,
        "out_channels": layout.channels,
        "num_layers": layout.blocks,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "joint_attention_dim": layout.text_width,
        "caption_projection_dim": layout.width,
        "pooled_projection_dim": layout.pooled_width,
        "pos_embed_max_size": layout.positions,
        "dual_attention_layers": layout.dual,
        "qk_norm": "rms_norm" if layout.normed else None,
    }
