"""The attention of Black Forest Labs' double blocks: one stream of the picture, one of the text, each with layers
of its own, and q, k and v of a stream one matrix in the published file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lora_scripts.families.names import THIRDS
from lora_scripts.families.sd.rows import Row

Layer = Callable[[str, str, tuple[int, int]], Iterable[Row]]
"""The rows of a layer of (published name, ours, shape of its weight)."""
STREAMS = {
    "img": (("to_q", "to_k", "to_v"), "to_out.0", "norm_"),
    "txt": (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added_"),
}
"""Of each stream our names of q, k, v and of what follows, and what those of the norms begin with."""


def attention(layer: Layer, stream: str, ldm: str, hf: str, wide: int, head: int) -> Iterator[Row]:
    """Every parameter of a stream's, in a block of these names."""
    leaves, out, norm = STREAMS[stream]
    for share, leaf in zip(THIRDS, leaves, strict=True):
        whole = layer(f"{ldm}.{stream}_attn.qkv", f"{hf}.attn.{leaf}", (wide, wide))
        yield from (row._replace(share=share) for row in whole)
    yield from layer(f"{ldm}.{stream}_attn.proj", f"{hf}.attn.{out}", (wide, wide))
    for name, leaf in (("query_norm", "q"), ("key_norm", "k")):
        yield Row(f"{ldm}.{stream}_attn.norm.{name}.scale", f"{hf}.attn.{norm}{leaf}.weight", (head,))
