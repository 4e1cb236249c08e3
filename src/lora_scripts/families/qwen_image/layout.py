"""The topology of Qwen-Image's transformer, and a row for every parameter, generated from the widths.

Facts: the published model (Qwen/Qwen-Image and Qwen-Image-2512: 60 blocks of 3072 channels, heads of 128) and
`QwenImageTransformer2DModel` of diffusers, whose names the single files of ComfyUI have, too. Text and picture have
layers of their own in every block, and meet in its attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of

TIME = 256
"""Width of what is told of the noise level."""
PATCH = 2
"""Latents that a token stands for, along each side."""
CHANNELS = 16
APART = "__index_timestep_zero__"
"""Which a file has, as a mark, whose model is told that what it draws from has no noise: Edit from 2511 on."""
SIDE = 1328
"""Pixels along the sides of a square picture, as the base was made for."""


@dataclass(frozen=True)
class QwenImageLayout:
    """What tells one Qwen-Image from another."""

    width: int = 3072
    blocks: int = 60
    head: int = 128
    text_width: int = 3584
    """Of the states that it reads."""
    channels: int = CHANNELS
    apart: bool = False
    """Whether it is told that what it draws from has no noise."""


STANDARD = QwenImageLayout()


def rows(layout: QwenImageLayout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: QwenImageLayout) -> Iterator[Row]:
    wide, patch = layout.width, layout.channels * PATCH**2
    yield from _both("img_in", (wide, patch))
    yield Row("txt_norm.weight", "txt_norm.weight", (layout.text_width,))
    yield from _both("txt_in", (wide, layout.text_width))
    yield from _both("time_text_embed.timestep_embedder.linear_1", (wide, TIME))
    yield from _both("time_text_embed.timestep_embedder.linear_2", (wide, wide))
    for n in range(layout.blocks):
        at = f"transformer_blocks.{n}"
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            yield from _both(f"{at}.attn.{name}", (wide, wide))
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            yield Row(f"{at}.attn.{name}.weight", f"{at}.attn.{name}.weight", (layout.head,))
        for stream in ("img", "txt"):
            yield from _both(f"{at}.{stream}_mod.1", (6 * wide, wide))
            yield from _both(f"{at}.{stream}_mlp.net.0.proj", (4 * wide, wide))
            yield from _both(f"{at}.{stream}_mlp.net.2", (wide, 4 * wide))
    yield from _both("norm_out.linear", (2 * wide, wide))
    yield from _both("proj_out", (patch, wide))


def _both(name: str, shape: tuple[int, ...]) -> Iterator[Row]:
    return both(name, name, shape)


def layout_of(shapes: Shapes, file: Path | None) -> QwenImageLayout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return QwenImageLayout(
        width=size_of(shapes, "img_in.weight", 0, file),
        blocks=count_of(shapes, "transformer_blocks."),
        head=size_of(shapes, "transformer_blocks.0.attn.norm_q.weight", 0, file),
        text_width=size_of(shapes, "txt_in.weight", 1, file),
        channels=size_of(shapes, "img_in.weight", 1, file) // PATCH**2,
        apart=APART in shapes,
    )


CONFIG = ("num_attention_heads", "attention_head_dim", "num_layers", "joint_attention_dim", "in_channels")
"""What a diffusers folder's config must say."""


def layout_from(config: Mapping[str, Any]) -> QwenImageLayout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    heads, head, blocks, text_width, channels = (config[key] for key in CONFIG)
    apart = bool(config.get("zero_cond_t"))
    return QwenImageLayout(heads * head, blocks, head, text_width, channels // PATCH**2, apart)


def config_of(layout: QwenImageLayout) -> dict[str, Any]:
    """Arguments of diffusers' QwenImageTransformer2DModel. The rotation's axes share a head as 16, 56 and 56 of 128."""
    first = layout.head // 16 * 2
    second = (layout.head - first) // 4 * 2
    return {
        "patch_size": PATCH,
        "in_channels": layout.channels * PATCH**2,
        "out_channels": layout.channels,
        "num_layers": layout.blocks,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "joint_attention_dim": layout.text_width,
        "axes_dims_rope": (first, second, layout.head - first - second),
        "zero_cond_t": layout.apart,
    }
