"""The topology of Qwen-Image-2.1's transformer, and a row for every parameter, generated from the widths.

Facts: the published model (Qwen/Qwen-Image-2.1: 32 blocks of 4096 channels, heads of 128, no biases) and diffusers'
`QwenImage21Transformer2DModel`. Text and picture are one sequence, and one modulation is shared by all blocks. In
ComfyUI's single files gate and up of an MLP are one matrix, the gate first; others have diffusers' names throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.names import Share
from lora_scripts.families.sd.rows import Row, Shapes, count_of, size_of

TIME = 256
"""Width of what is told of the noise level."""
CHANNELS = 64
PIXEL = 4
"""Numbers of a pixel: red, green, blue, and how opaque it is."""
SIDE = 1024
"""Pixels along the sides of a square picture: as diffusers' pipeline draws where it is not told."""
_FUSED = "transformer_blocks.0.img_mlp.gate_up.weight"
_HALVES = {"gate_layer": Share(0, 1, 2), "proj": Share(1, 2, 2)}


@dataclass(frozen=True)
class QwenImage21Layout:
    """What tells one Qwen-Image-2.1 from another."""

    width: int = 4096
    blocks: int = 32
    head: int = 128
    text_width: int = 4096
    """Of the states that it reads."""
    channels: int = CHANNELS
    inner: int = 12288
    """Of the MLP."""
    fused: bool = True
    """Whether gate and up of an MLP are one matrix in its file."""


STANDARD = QwenImage21Layout()


def rows(layout: QwenImage21Layout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: QwenImage21Layout) -> Iterator[Row]:
    wide, inner = layout.width, layout.inner
    yield _row("img_in", wide, layout.channels)
    yield _row("txt_in.text_norm", layout.text_width)
    yield _row("txt_in.in_layer", wide, layout.text_width)
    yield _row("txt_in.out_layer", wide, wide)
    yield _row("time_text_embed.timestep_embedder.linear_1", wide, TIME)
    yield _row("time_text_embed.timestep_embedder.linear_2", wide, wide)
    yield _row("modulation.1", 4 * wide, wide)
    for n in range(layout.blocks):
        at = f"transformer_blocks.{n}"
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield _row(f"{at}.attn.{name}", wide, wide)
        for name in ("norm_q", "norm_k"):
            yield _row(f"{at}.attn.{name}", layout.head)
        for name, share in _HALVES.items():
            row = _row(f"{at}.img_mlp.{name}", inner, wide)
            yield row._replace(ldm=f"{at}.img_mlp.gate_up.weight", share=share) if layout.fused else row
        yield _row(f"{at}.img_mlp.out", wide, inner)
    yield _row("norm_out.linear", wide, wide)
    yield _row("proj_out", layout.channels, wide)


def _row(name: str, *shape: int) -> Row:
    return Row(f"{name}.weight", f"{name}.weight", shape)


def layout_of(shapes: Shapes, file: Path | None) -> QwenImage21Layout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return QwenImage21Layout(
        width=size_of(shapes, "img_in.weight", 0, file),
        blocks=count_of(shapes, "transformer_blocks."),
        head=size_of(shapes, "transformer_blocks.0.attn.norm_q.weight", 0, file),
        text_width=size_of(shapes, "txt_in.in_layer.weight", 1, file),
        channels=size_of(shapes, "img_in.weight", 1, file),
        inner=size_of(shapes, "transformer_blocks.0.img_mlp.out.weight", 1, file),
        fused=_FUSED in shapes,
    )


CONFIG = ("num_attention_heads", "attention_head_dim", "num_layers", "context_in_dim", "in_channels")
"""What a diffusers folder's config must say."""


def layout_from(config: Mapping[str, Any]) -> QwenImage21Layout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    heads, head, blocks, text_width, channels = (config[key] for key in CONFIG)
    wide = heads * head
    return QwenImage21Layout(wide, blocks, head, text_width, channels, wide * config.get("mlp_ratio", 3), fused=False)


def config_of(layout: QwenImage21Layout) -> dict[str, Any]:
    """Arguments of diffusers' QwenImage21Transformer2DModel. The rotation's axes share a head as 16, 56 and 56 of
    128."""
    first = layout.head // 16 * 2
    second = (layout.head - first) // 4 * 2
    return {
        "in_channels": layout.channels,
        "out_channels": layout.channels,
        "num_layers": layout.blocks,
        "attention_head_dim": layout.head,
        "num_attention_heads": layout.width // layout.head,
        "context_in_dim": layout.text_width,
        "mlp_ratio": layout.inner // layout.width,
        "axes_dims_rope": (first, second, layout.head - first - second),
    }
