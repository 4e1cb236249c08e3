"""The blocks of FLUX.1, which Chroma has, too: a row for every parameter, generated from the widths.

Facts: Black Forest Labs' flux and diffusers' `FluxTransformer2DModel`: every layer has a bias; q, k and v are one
matrix in the published file, in the single blocks together with the first layer of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lora_scripts.families.black_forest.streams import attention
from lora_scripts.families.names import Share
from lora_scripts.families.sd.rows import Row, both

MLP = 4
"""Times the width: its MLPs."""
CHANNELS = 16
"""Of the latents, which are packed 2 x 2 on the way in."""
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for."""
_PARTS = 3 + MLP
"""Of the first layer of a single block: q, k and v, and the MLP."""
_FEED_FORWARD = (".ff.", ".ff_context.", ".proj_mlp", ".proj_out")
LAYERS: dict[str, Callable[[str], bool]] = {
    "attention": lambda path: ".attn." in path,
    "feed_forward": lambda path: any(mark in path for mark in _FEED_FORWARD),
}
BLOCKS: dict[str, Callable[[str], bool]] = {
    "double": lambda path: path.startswith("transformer.transformer_blocks."),
    "single": lambda path: path.startswith("transformer.single_transformer_blocks."),
}
"""Groups for `targets`: what a layer does, and where it is."""


def double(n: int, wide: int, head: int, *, modulated: bool) -> Iterator[Row]:
    """Of the n-th double block."""
    ldm, hf, inner = f"double_blocks.{n}", f"transformer_blocks.{n}", MLP * wide
    for stream, ff, modulation in (("img", "ff", "norm1"), ("txt", "ff_context", "norm1_context")):
        yield from attention(both, stream, ldm, hf, wide, head)
        yield from both(f"{ldm}.{stream}_mlp.0", f"{hf}.{ff}.net.0.proj", (inner, wide))
        yield from both(f"{ldm}.{stream}_mlp.2", f"{hf}.{ff}.net.2", (wide, inner))
        if modulated:
            yield from both(f"{ldm}.{stream}_mod.lin", f"{hf}.{modulation}.linear", (6 * wide, wide))


def single(n: int, wide: int, head: int, *, modulated: bool) -> Iterator[Row]:
    """Of the n-th single block."""
    ldm, hf, inner = f"single_blocks.{n}", f"single_transformer_blocks.{n}", MLP * wide
    for part, leaf in enumerate(("to_q", "to_k", "to_v")):
        yield from _shared(f"{ldm}.linear1", f"{hf}.attn.{leaf}", (wide, wide), Share(part, part + 1, _PARTS))
    yield from _shared(f"{ldm}.linear1", f"{hf}.proj_mlp", (inner, wide), Share(3, _PARTS, _PARTS))
    yield from both(f"{ldm}.linear2", f"{hf}.proj_out", (wide, wide + inner))
    for name, leaf in (("query_norm", "q"), ("key_norm", "k")):
        yield Row(f"{ldm}.norm.{name}.scale", f"{hf}.attn.norm_{leaf}.weight", (head,))
    if modulated:
        yield from both(f"{ldm}.modulation.lin", f"{hf}.norm.linear", (3 * wide, wide))


def _shared(ldm: str, hf: str, shape: tuple[int, int], share: Share) -> Iterator[Row]:
    return (row._replace(share=share) for row in both(ldm, hf, shape))


def axes(head: int) -> tuple[int, int, int]:
    """How the rotation's axes share a head: as 16, 56 and 56 of 128."""
    first = head // 8
    other = (head - first) // 2
    return first, other, other
