"""The topology of Z-Image's transformer, and a row for every parameter, generated from the widths.

Facts: the published model (Tongyi-MAI/Z-Image: 30 layers of 3840 channels, two refiners on either side, heads of 128)
and diffusers' `ZImageTransformer2DModel`. The single files that people have come from ComfyUI: q, k and v are one
matrix there, and a few layers have other names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.names import THIRDS
from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of

TIME, MIDDLE = 256, 1024
"""Width of the time embedding at most, and of the layer that makes it."""
PATCH = 2
"""Latents that a token stands for, along each side."""
CHANNELS = 16
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for."""
SAMPLER_SHIFT = 3.0
"""Of the noise levels of a base that does not say: as ComfyUI draws with any Z-Image, and as Turbo's scheduler has it.
The folder of the base says 6."""


@dataclass(frozen=True)
class ZImageLayout:
    """What tells one Z-Image from another."""

    width: int = 3840
    layers: int = 30
    refiners: int = 2
    head: int = 128
    text_width: int = 2560
    """Of the states that it reads."""
    channels: int = CHANNELS


STANDARD = ZImageLayout()


def rows(layout: ZImageLayout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: ZImageLayout) -> Iterator[Row]:
    wide, time = layout.width, min(layout.width, TIME)
    patch = layout.channels * PATCH**2
    yield from both("x_embedder", f"all_x_embedder.{PATCH}-1", (wide, patch))
    yield from both("final_layer.linear", f"all_final_layer.{PATCH}-1.linear", (patch, wide))
    yield from both("final_layer.adaLN_modulation.1", f"all_final_layer.{PATCH}-1.adaLN_modulation.1", (wide, time))
    for block in (f"noise_refiner.{n}" for n in range(layout.refiners)):
        yield from _block(layout, block, modulated=True)
    for block in (f"context_refiner.{n}" for n in range(layout.refiners)):
        yield from _block(layout, block, modulated=False)
    for name, shape in (("t_embedder.mlp.0", (MIDDLE, TIME)), ("t_embedder.mlp.2", (time, MIDDLE))):
        yield from both(name, name, shape)
    yield Row("cap_embedder.0.weight", "cap_embedder.0.weight", (layout.text_width,))
    yield from both("cap_embedder.1", "cap_embedder.1", (wide, layout.text_width))
    for name in ("x_pad_token", "cap_pad_token"):
        yield Row(name, name, (1, wide))
    for n in range(layout.layers):
        yield from _block(layout, f"layers.{n}", modulated=True)


def _block(layout: ZImageLayout, at: str, *, modulated: bool) -> Iterator[Row]:
    wide, inner = layout.width, int(layout.width / 3 * 8)
    for share, name in zip(THIRDS, ("to_q", "to_k", "to_v"), strict=True):
        yield Row(f"{at}.attention.qkv.weight", f"{at}.attention.{name}.weight", (wide, wide), share)
    yield Row(f"{at}.attention.out.weight", f"{at}.attention.to_out.0.weight", (wide, wide))
    for name, other in (("q_norm", "norm_q"), ("k_norm", "norm_k")):
        yield Row(f"{at}.attention.{name}.weight", f"{at}.attention.{other}.weight", (layout.head,))
    for name, shape in (("w1", (inner, wide)), ("w2", (wide, inner)), ("w3", (inner, wide))):
        key = f"{at}.feed_forward.{name}.weight"
        yield Row(key, key, shape)
    for name in ("attention_norm1", "ffn_norm1", "attention_norm2", "ffn_norm2"):
        yield Row(f"{at}.{name}.weight", f"{at}.{name}.weight", (wide,))
    if modulated:
        yield from both(f"{at}.adaLN_modulation.0", f"{at}.adaLN_modulation.0", (4 * wide, min(wide, TIME)))


def layout_of(shapes: Shapes, file: Path | None) -> ZImageLayout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return ZImageLayout(
        width=size_of(shapes, "x_embedder.weight", 0, file),
        layers=count_of(shapes, "layers."),
        refiners=count_of(shapes, "noise_refiner."),
        head=size_of(shapes, "layers.0.attention.q_norm.weight", 0, file),
        text_width=size_of(shapes, "cap_embedder.1.weight", 1, file),
        channels=size_of(shapes, "x_embedder.weight", 1, file) // PATCH**2,
    )


CONFIG = ("dim", "n_layers", "n_refiner_layers", "n_heads", "cap_feat_dim", "in_channels")
"""What a diffusers folder's config must say."""


def layout_from(config: Mapping[str, Any]) -> ZImageLayout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not."""
    width, layers, refiners, heads, text_width, channels = (config[key] for key in CONFIG)
    return ZImageLayout(width, layers, refiners, width // heads, text_width, channels)


def config_of(layout: ZImageLayout) -> dict[str, Any]:
    """Arguments of diffusers' ZImageTransformer2DModel. The rotation's axes share a head as 32, 48 and 48 of 128."""
    first = layout.head // 4
    other = (layout.head - first) // 2
    return {
        "in_channels": layout.channels,
        "dim": layout.width,
        "n_layers": layout.layers,
        "n_refiner_layers": layout.refiners,
        "n_heads": layout.width // layout.head,
        "n_kv_heads": layout.width // layout.head,
        "cap_feat_dim": layout.text_width,
        "axes_dims": [first, other, other],
        "axes_lens": [1024, 512, 512],
    }
