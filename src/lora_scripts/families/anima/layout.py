"""The topology of Anima's transformer and of the adapter in front of it, a row for every parameter, from the widths.

Facts: the published model (circlestone-labs/Anima: 28 blocks of 2048 channels, heads of 128, an adapter of six blocks)
and diffusers' `CosmosTransformer3DModel` and `AnimaTextConditioner`. The single file has both, the transformer in the
names of Cosmos-Predict2, the adapter in its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of

PATCH = 2
"""Latents that a token stands for, along each side."""
CHANNELS = 16
SIDE = 1024
"""Pixels along the sides of a square picture, as the base was made for."""
SAMPLER_SHIFT = 3.0
"""Of the noise levels of a base that does not say: as ComfyUI draws, and as the published folder has it."""
ADAPTER = "llm_adapter."
"""What the adapter's keys begin with in a single file."""
WORDS = 512
"""States that the transformer reads of a text, zeros behind those that it has."""


@dataclass(frozen=True)
class AnimaLayout:
    """What tells one Anima from another."""

    width: int = 2048
    blocks: int = 28
    head: int = 128
    text_width: int = 1024
    """Of the states that it reads: the adapter's."""
    modulation: int = 256
    """Between a block's modulation and what it comes from."""
    channels: int = CHANNELS


@dataclass(frozen=True)
class AdapterLayout:
    """What tells one adapter from another."""

    source: int = 1024
    """Width of the language model's states."""
    width: int = 1024
    out: int = 1024
    """Of its states, and of its tokens before its first block."""
    blocks: int = 6
    head: int = 64
    inner: int = 4096
    """Of the MLP."""
    tokens: int = 32128
    """Of its own vocabulary, T5's."""


STANDARD, ADAPTER_STANDARD = AnimaLayout(), AdapterLayout()


def rows(layout: AnimaLayout) -> list[Row]:
    """Every parameter of the transformer."""
    return list(_rows(layout))


def _rows(layout: AnimaLayout) -> Iterator[Row]:
    wide, patch = layout.width, PATCH**2
    # One channel more than latents have: of films of Cosmos it says where they are filled up.
    yield _row("x_embedder.proj.1", "patch_embed.proj", wide, (layout.channels + 1) * patch)
    yield _row("t_embedder.1.linear_1", "time_embed.t_embedder.linear_1", wide, wide)
    yield _row("t_embedder.1.linear_2", "time_embed.t_embedder.linear_2", 3 * wide, wide)
    yield _row("t_embedding_norm", "time_embed.norm", wide)
    for n in range(layout.blocks):
        ldm, hf = f"blocks.{n}", f"transformer_blocks.{n}"
        for number, part in ((1, "self_attn"), (2, "cross_attn"), (3, "mlp")):
            yield _row(f"{ldm}.adaln_modulation_{part}.1", f"{hf}.norm{number}.linear_1", layout.modulation, wide)
            yield _row(f"{ldm}.adaln_modulation_{part}.2", f"{hf}.norm{number}.linear_2", 3 * wide, layout.modulation)
        for number, part, given in ((1, "self_attn", wide), (2, "cross_attn", layout.text_width)):
            at, to = f"{ldm}.{part}", f"{hf}.attn{number}"
            yield _row(f"{at}.q_proj", f"{to}.to_q", wide, wide)
            yield _row(f"{at}.k_proj", f"{to}.to_k", wide, given)
            yield _row(f"{at}.v_proj", f"{to}.to_v", wide, given)
            yield _row(f"{at}.output_proj", f"{to}.to_out.0", wide, wide)
            yield _row(f"{at}.q_norm", f"{to}.norm_q", layout.head)
            yield _row(f"{at}.k_norm", f"{to}.norm_k", layout.head)
        yield _row(f"{ldm}.mlp.layer1", f"{hf}.ff.net.0.proj", 4 * wide, wide)
        yield _row(f"{ldm}.mlp.layer2", f"{hf}.ff.net.2", wide, 4 * wide)
    yield _row("final_layer.adaln_modulation.1", "norm_out.linear_1", layout.modulation, wide)
    yield _row("final_layer.adaln_modulation.2", "norm_out.linear_2", 2 * wide, layout.modulation)
    yield _row("final_layer.linear", "proj_out", layout.channels * patch, wide)


def _row(ldm: str, hf: str, *shape: int) -> Row:
    return Row(f"{ldm}.weight", f"{hf}.weight", shape)


def adapter_rows(layout: AdapterLayout) -> list[Row]:
    """Every parameter of the adapter."""
    return list(_adapter_rows(layout))


def _adapter_rows(layout: AdapterLayout) -> Iterator[Row]:
    def own(name: str, *shape: int) -> Row:
        return Row(f"{ADAPTER}{name}.weight", f"{name}.weight", shape)

    wide = layout.width
    yield own("embed", layout.tokens, layout.out)
    if wide != layout.out:
        yield from both(f"{ADAPTER}in_proj", "in_proj", (wide, layout.out))
    for n in range(layout.blocks):
        at = f"blocks.{n}"
        for part, given in (("self_attn", wide), ("cross_attn", layout.source)):
            yield own(f"{at}.norm_{part}", wide)
            yield own(f"{at}.{part}.q_proj", wide, wide)
            yield own(f"{at}.{part}.k_proj", wide, given)
            yield own(f"{at}.{part}.v_proj", wide, given)
            yield own(f"{at}.{part}.o_proj", wide, wide)
            yield own(f"{at}.{part}.q_norm", layout.head)
            yield own(f"{at}.{part}.k_norm", layout.head)
        yield own(f"{at}.norm_mlp", wide)
        yield from both(f"{ADAPTER}{at}.mlp.0", f"{at}.mlp.0", (layout.inner, wide))
        yield from both(f"{ADAPTER}{at}.mlp.2", f"{at}.mlp.2", (wide, layout.inner))
    yield from both(f"{ADAPTER}out_proj", "out_proj", (layout.out, wide))
    yield own("norm", layout.out)


def layout_of(shapes: Shapes, file: Path | None) -> AnimaLayout:
    """The widths of a single file, its keys without prefix. UserError when the tensor that tells one is missing."""
    return AnimaLayout(
        width=size_of(shapes, "x_embedder.proj.1.weight", 0, file),
        blocks=count_of(shapes, "blocks."),
        head=size_of(shapes, "blocks.0.self_attn.q_norm.weight", 0, file),
        text_width=size_of(shapes, "blocks.0.cross_attn.k_proj.weight", 1, file),
        modulation=size_of(shapes, "blocks.0.adaln_modulation_self_attn.1.weight", 0, file),
        channels=size_of(shapes, "final_layer.linear.weight", 0, file) // PATCH**2,
    )


def adapter_of(shapes: Shapes, file: Path | None) -> AdapterLayout:
    """The same of its adapter."""
    block = f"{ADAPTER}blocks.0"
    return AdapterLayout(
        source=size_of(shapes, f"{block}.cross_attn.k_proj.weight", 1, file),
        width=size_of(shapes, f"{block}.cross_attn.q_proj.weight", 0, file),
        out=size_of(shapes, f"{ADAPTER}embed.weight", 1, file),
        blocks=count_of(shapes, f"{ADAPTER}blocks."),
        head=size_of(shapes, f"{block}.self_attn.q_norm.weight", 0, file),
        inner=size_of(shapes, f"{block}.mlp.0.weight", 0, file),
        tokens=size_of(shapes, f"{ADAPTER}embed.weight", 0, file),
    )


CONFIG = ("num_attention_heads", "attention_head_dim", "num_layers", "text_embed_dim", "adaln_lora_dim", "in_channels")
"""What a diffusers folder's config must say."""
ADAPTER_CONFIG = ("source_dim", "target_dim", "model_dim", "num_layers", "num_attention_heads", "target_vocab_size")
"""What its adapter's must."""


def layout_from(config: Mapping[str, Any]) -> AnimaLayout:
    """The widths of a diffusers folder. KeyError and the like for a config that says them not, or of a relative."""
    heads, head, blocks, text_width, modulation, channels = (config[key] for key in CONFIG)
    if config.get("extra_pos_embed_type", "learnable") or not config.get("concat_padding_mask", True):
        raise ValueError("it is another Cosmos")
    return AnimaLayout(heads * head, blocks, head, text_width, modulation, channels)


def adapter_from(config: Mapping[str, Any]) -> AdapterLayout:
    """The same of its adapter."""
    source, out, width, blocks, heads, tokens = (config[key] for key in ADAPTER_CONFIG)
    if not config.get("use_self_attention", True) or config.get("use_layer_norm"):
        raise ValueError("it has other blocks")
    return AdapterLayout(source, width, out, blocks, width // heads, int(width * config.get("mlp_ratio", 4.0)), tokens)


def config_of(layout: AnimaLayout) -> dict[str, Any]:
    """Arguments of diffusers' CosmosTransformer3DModel."""
    return {
        "in_channels": layout.channels,
        "out_channels": layout.channels,
        "num_attention_heads": layout.width // layout.head,
        "attention_head_dim": layout.head,
        "num_layers": layout.blocks,
        "text_embed_dim": layout.text_width,
        "adaln_lora_dim": layout.modulation,
        "rope_scale": (1.0, 4.0, 4.0),
        "extra_pos_embed_type": None,
    }


def adapter_config(layout: AdapterLayout) -> dict[str, Any]:
    """Arguments of diffusers' AnimaTextConditioner."""
    return {
        "source_dim": layout.source,
        "target_dim": layout.out,
        "model_dim": layout.width,
        "num_layers": layout.blocks,
        "num_attention_heads": layout.width // layout.head,
        "mlp_ratio": layout.inner / layout.width,
        "target_vocab_size": layout.tokens,
        "min_sequence_length": 0,  # what fills a text up is added where it is read
    }
