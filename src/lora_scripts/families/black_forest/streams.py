"""What the models of Black Forest Labs share. A double block has two streams, one of the picture and one of the text,
each with layers of its own; in the published file q, k and v of a stream are one matrix.

diffusers' names behind `transformer.` are read by ComfyUI and diffusers; so are kohya's on the published layout. What
ComfyUI asks a file for was seen in its own table of keys (0.33.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.names import THIRDS, Base, Layer, Names, Share
from lora_scripts.families.sd.rows import Row

INSIDE = ("transformer_blocks.", "single_transformer_blocks.")
"""What the paths of layers begin with that are trained here. LoRAs of OneTrainer's preset "full" and of kohya's
`in_dims` have the others, too."""
MakeRows = Callable[[str, str, tuple[int, int]], Iterable[Row]]
"""The rows of a layer of (published name, ours, shape of its weight)."""
STREAMS = {
    "img": (("to_q", "to_k", "to_v"), "to_out.0", "norm_"),
    "txt": (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added_"),
}
"""Of each stream our names of q, k, v and of what follows, and what those of the norms begin with."""
_NEW = (
    *("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation."),
    "distilled_guidance_layer.",
)
"""What diffusers' names begin with of layers of FLUX.2, and of Chroma, around the blocks: ComfyUI knows them as
published alone."""
_SD3 = frozenset({1536, 2432})
"""Widths of SD 3 and 3.5, medium and large, whose attention has the same names."""


def attention(layer: MakeRows, stream: str, ldm: str, hf: str, wide: int, head: int) -> Iterator[Row]:
    """Every parameter of a stream's, in a block of these names."""
    leaves, out, norm = STREAMS[stream]
    for share, leaf in zip(THIRDS, leaves, strict=True):
        whole = layer(f"{ldm}.{stream}_attn.qkv", f"{hf}.attn.{leaf}", (wide, wide))
        yield from (row._replace(share=share) for row in whole)
    yield from layer(f"{ldm}.{stream}_attn.proj", f"{hf}.attn.{out}", (wide, wide))
    for name, leaf in (("query_norm", "q"), ("key_norm", "k")):
        yield Row(f"{ldm}.{stream}_attn.norm.{name}.scale", f"{hf}.attn.{norm}{leaf}.weight", (head,))


def names_of(
    name: str,
    words: str,
    table: Iterable[Row],
    *,
    whole: bool,
    foreign_widths: frozenset[int] = _SD3,
) -> Names:
    """Of all layers of a model; only those in blocks have shapes that tell it from others. `whole`, `foreign_widths`:
    as of `Names`."""
    written: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    others: dict[str, str] = {}
    fused: dict[str, dict[str, Share]] = {}
    turned: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for row in linear(table):
        hf, ldm = stem(row.hf), stem(row.ldm)
        path = f"{PART}.{hf}"
        diffusers[path], shapes[path] = f"transformer.{hf}", row.shape if hf.startswith(INSIDE) else ()
        written[path] = _kohya(ldm)
        others |= dict.fromkeys(_spelt(hf), path)
        for key in (*_published(ldm), *_by_musubi(ldm)):
            if row.share is not None:
                fused.setdefault(key, {})[path] = row.share
                shapes[key] = row.file_shape
            else:
                (turned if row.swapped else others)[key] = path
    unasked = frozenset(path for path in written if path.removeprefix(f"{PART}.").startswith(_NEW))
    unheard = frozenset(key for row in linear(table) for key in _by_musubi(stem(row.ldm)))
    form: Any = {"whole": whole, "foreign_widths": foreign_widths, "turned": turned, "unasked": unasked}
    return Names(name, words, written, {}, diffusers, others, fused, shapes, form="diffusers", unheard=unheard, **form)


def base_of(table: Iterable[Row], text_width: int | None) -> Base:
    """The layers of a model; without the width of its text states, without shapes."""
    layers = []
    for row in linear(table):
        hf, ldm, flat = stem(row.hf), stem(row.ldm), stem(row.hf).replace(".", "_")
        known = not hf.startswith(_NEW)
        asked = [f"transformer.{hf}", hf, f"lycoris_{flat}", f"lora_transformer_{flat}"] if known else []
        if row.share is None and not row.swapped:
            asked += [f"diffusion_model.{ldm}", _kohya(ldm)]
        shape = () if text_width is None else row.shape
        layers.append(Layer(f"{PART}.{hf}", hf, ldm if row.share is None else hf, "", shape, tuple(asked), row.swapped))
    return Base(tuple(layers), text_width or 0)


def attention_of(blocks: range) -> frozenset[str]:
    """What the attention of double blocks of these numbers is called: other models have these names, too."""
    leaves = [leaf for own, out, _ in STREAMS.values() for leaf in (*own, out)]
    names = [f"transformer_blocks.{n}.attn.{leaf}" for n in blocks for leaf in leaves]
    return frozenset(stem for name in names for stem in (f"transformer.{name}", *_spelt(name)))


def _spelt(hf: str) -> tuple[str, ...]:
    """What a layer of diffusers' layout is called in LoRA files, but for diffusers' own."""
    flat = hf.replace(".", "_")
    return hf, f"diffusion_model.{hf}", f"lycoris_{flat}", f"lora_transformer_{flat}"


def _published(ldm: str) -> tuple[str, ...]:
    """What a layer of the published layout is called in LoRA files."""
    return f"diffusion_model.{ldm}", ldm, _kohya(ldm), f"lycoris_{ldm.replace('.', '_')}"


def _by_musubi(ldm: str) -> tuple[str, ...]:
    """What musubi-tuner's `convert_lora.py` makes of the name of a layer of attention; no other program has it."""
    return (f"diffusion_model.{ldm.replace('_attn.', '_attn_')}",) if "_attn." in ldm else ()


def _kohya(ldm: str) -> str:
    return f"lora_unet_{ldm.replace('.', '_')}"
