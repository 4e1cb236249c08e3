"""The vision tower of Qwen2.5-VL, as facts that need no torch: what reads the pictures that an Edit draws from.

Facts: transformers' `Qwen2_5_VLModel`. A file alone does not say how its heads are cut, nor which of its blocks look
beyond a window of 112 pixels: of the published ones heads have 80 channels, and every eighth block looks at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families.flow import llm
from lora_scripts.families.flow.llm import Source
from lora_scripts.families.flow.pieces import Pieces, require_floats
from lora_scripts.families.flow.places import require_signs
from lora_scripts.families.sd.component import configured, number_of
from lora_scripts.families.sd.rows import Row, both, check_rows, count_of, is_spare, size_of

PREFIX = "visual."
PATCH, FRAMES, MERGED = 14, 2, 2
"""Pixels and frames that a patch stands for, and patches that a token stands for, along each side."""
BEGIN, PAD, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
"""Around a picture's tokens, and what holds the place of each."""
_HEAD, _EVERY, _WINDOW = 80, 8, 112
_BRING = "give qwen_2.5_vl_7b.safetensors, or qwen_2.5_vl_7b_fp8_scaled.safetensors, whole"


@dataclass(frozen=True)
class Tower:
    """What tells one from another."""

    width: int
    blocks: int
    inner: int
    """Of the MLPs."""
    heads: int
    out: int
    """Width of the states that the language model is given."""
    window: int
    whole: tuple[int, ...]
    """Which blocks look at the whole picture."""
    sections: tuple[int, ...]
    """Of the language model's rotation: how many of its numbers tell time, height and width."""


def require(source: Source) -> Tower:
    """The tower of a text encoder. UserErrors where there is none, or where it is not whole."""
    pieces = source.pieces()
    own = [key for key in pieces.keys() if key.startswith(PREFIX)]  # noqa: SIM118  it is no mapping
    if not own:
        text = "this text encoder has no vision tower, and cannot be shown references"
        raise UserError(text, file=source.path, hint=_BRING)
    tower = _tower(source, pieces)
    unknown = [key for key in own if not is_spare(key)]
    require_floats(pieces, {pieces.key_in_file(key) for key in unknown})
    check_rows(pieces.shapes, {"vision tower": rows(tower)}, unknown, file=source.path, plain=_BRING)
    if tower.out != source.layout.width:
        text = f"its vision tower gives states of width {tower.out}, it reads {source.layout.width}"
        raise UserError(text, file=source.path, hint=_BRING)
    require_signs(source.tokenizer, (BEGIN, PAD, END), "tokenizer")
    return tower


def _tower(source: Source, pieces: Pieces) -> Tower:
    """UserErrors where a tensor that tells of it is missing, and for a folder's config that makes no sense."""
    if not source.path.is_dir():
        return _told(source, pieces, {})
    with configured(source.path) as config:
        return _told(source, pieces, config)


def _told(source: Source, pieces: Pieces, config: Mapping[str, Any]) -> Tower:
    """ValueErrors and the like for what the config says and cannot be."""
    shapes, file = pieces.shapes, source.path
    own, text = config.get("vision_config") or {}, config.get("text_config") or config
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    width = size_of(shapes, f"{PREFIX}patch_embed.proj.weight", 0, file)
    blocks = count_of(shapes, f"{PREFIX}blocks.")
    half = source.layout.head // 2
    sides = half * 3 // 8
    heads = int(number_of(own, "num_heads", max(1, width // _HEAD)))
    sections = tuple(rope.get("mrope_section", (half - 2 * sides, sides, sides)))
    if heads < 1 or width % heads:
        raise ValueError(f"num_heads is {heads}, of {width} channels")
    if sum(sections) != half:
        raise ValueError(f"mrope_section is {list(sections)}, which are not {half} together")
    return Tower(
        width=width,
        blocks=blocks,
        inner=size_of(shapes, f"{PREFIX}blocks.0.mlp.gate_proj.weight", 0, file),
        heads=heads,
        out=size_of(shapes, f"{PREFIX}merger.mlp.2.weight", 0, file),
        window=int(number_of(own, "window_size", _WINDOW)),
        whole=tuple(map(int, own.get("fullatt_block_indexes", range(_EVERY - 1, blocks, _EVERY)))),
        sections=sections,
    )


def rows(tower: Tower) -> list[Row]:
    """Every parameter."""
    return list(_rows(tower))


def _rows(tower: Tower) -> Iterator[Row]:
    wide, merged = tower.width, tower.width * MERGED**2
    yield _row("patch_embed.proj.weight", wide, 3, FRAMES, PATCH, PATCH)
    for n in range(tower.blocks):
        for norm in ("norm1", "norm2"):
            yield _row(f"blocks.{n}.{norm}.weight", wide)
        sizes = {"attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide), "mlp.down_proj": (wide, tower.inner)}
        sizes |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (tower.inner, wide))
        for name, shape in sizes.items():
            yield from _both(f"blocks.{n}.{name}", shape)
    yield _row("merger.ln_q.weight", wide)
    for n, width in ((0, merged), (2, tower.out)):
        yield from _both(f"merger.mlp.{n}", (width, merged))


def _row(name: str, *shape: int) -> Row:
    return Row(f"{PREFIX}{name}", name, shape)


def _both(name: str, shape: tuple[int, int]) -> Iterator[Row]:
    return both(f"{PREFIX}{name}", name, shape)


def config_of(source: Source, tower: Tower) -> dict[str, Any]:
    """Arguments of transformers' `Qwen2_5_VLConfig`."""
    text = llm.config_of(source.layout, source.layout.layers)
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": list(tower.sections)}
    vision = {
        "depth": tower.blocks,
        "hidden_size": tower.width,
        "intermediate_size": tower.inner,
        "num_heads": tower.heads,
        "out_hidden_size": tower.out,
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES,
        "spatial_merge_size": MERGED,
        "window_size": tower.window,
        "fullatt_block_indexes": list(tower.whole),
    }
    return {"text_config": text, "vision_config": vision}
