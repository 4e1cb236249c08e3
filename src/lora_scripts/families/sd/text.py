"""CLIP's text encoders as Stable Diffusion has them: a row for every parameter, in either published layout.

Facts: transformers' CLIPTextModel and CLIPTextModelWithProjection, and open_clip's `ResidualAttentionBlock`, where q, k
and v are one matrix; its text projection stands the other way round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.names import THIRDS
from lora_scripts.families.sd.rows import Row, Shapes, both, count_of, size_of, under

if TYPE_CHECKING:
    from torch import Tensor

HEAD = 64
"""Channels of an attention head, in every published one."""


@dataclass(frozen=True)
class TextLayout:
    """What tells one CLIP text encoder from another."""

    width: int
    layers: int
    intermediate: int
    vocab: int
    positions: int
    projection: int = 0
    """Of the pooled state; 0: it is not made."""
    activation: str = "quick_gelu"
    """transformers' name of it: OpenAI's CLIP has "quick_gelu", open_clip's "gelu"."""


def clip_rows(layout: TextLayout, prefix: str) -> list[Row]:
    """As transformers names them; the published file has the same names behind its prefix, which ends `text_model.`"""
    return under(prefix, [row._replace(hf="text_model." + row.hf) for row in _clip(layout)])


def clip_layout(shapes: Shapes, prefix: str, file: Path | None) -> TextLayout:
    """Of a file with `clip_rows`. UserError when the tensor that tells a width is missing."""
    table = f"{prefix}embeddings.token_embedding.weight"
    return TextLayout(
        width=size_of(shapes, table, 1, file),
        layers=count_of(shapes, f"{prefix}encoder.layers."),
        intermediate=size_of(shapes, f"{prefix}encoder.layers.0.mlp.fc1.weight", 0, file),
        vocab=size_of(shapes, table, 0, file),
        positions=size_of(shapes, f"{prefix}embeddings.position_embedding.weight", 0, file),
    )


def open_clip_rows(layout: TextLayout, prefix: str) -> list[Row]:
    """As open_clip names them behind the prefix; q, k and v are three rows of one tensor."""
    return under(prefix, _open_clip(layout))


def text_config(layout: TextLayout) -> dict[str, object]:
    """Arguments of transformers' CLIPTextConfig."""
    return {
        "vocab_size": layout.vocab,
        "hidden_size": layout.width,
        "intermediate_size": layout.intermediate,
        "num_hidden_layers": layout.layers,
        "num_attention_heads": max(1, layout.width // HEAD),
        "max_position_embeddings": layout.positions,
        "hidden_act": layout.activation,
        "projection_dim": layout.projection or layout.width,
        "bos_token_id": layout.vocab - 2,
        "eos_token_id": layout.vocab - 1,
        "pad_token_id": layout.vocab - 1,
    }


def text_keys_like(text: Mapping[str, Tensor], model_keys: Collection[str]) -> dict[str, Tensor]:
    """A text encoder's state dict in the names of the built model: transformers >= 5.6 has no `text_model.`, older ones
    do.
    """
    flat = not any(key.startswith("text_model.") for key in model_keys)
    return {key.removeprefix("text_model.") if flat else key: value for key, value in text.items()}


def library_prefix(*, projection: bool) -> str:
    """What the paths of a text encoder's layers begin with in the installed transformers, and our paths do not."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(CLIPTextConfig(num_hidden_layers=1))
    return "text_model." if hasattr(model, "text_model") else ""


def published_text_keys(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A built text encoder's state dict in the published names, with `text_model.` and without position ids."""
    outside = ("text_model.", "text_projection.")
    named = {key if key.startswith(outside) else f"text_model.{key}": value for key, value in text.items()}
    named.pop("text_model.embeddings.position_ids", None)
    return named


def text_layout_of(text: Mapping[str, Tensor], activation: str = "quick_gelu") -> TextLayout:
    """The layout of a state dict in the published names."""
    vocab, width = text["text_model.embeddings.token_embedding.weight"].shape
    return TextLayout(
        width=width,
        layers=sum(key.endswith(".mlp.fc1.weight") for key in text),
        intermediate=text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        vocab=vocab,
        positions=text["text_model.embeddings.position_embedding.weight"].shape[0],
        projection=text["text_projection.weight"].shape[0] if "text_projection.weight" in text else 0,
        activation=activation,
    )


def _clip(layout: TextLayout) -> Iterator[Row]:
    width, inner = layout.width, layout.intermediate

    def same(name: str, weight: tuple[int, ...]) -> Iterator[Row]:
        return both(name, name, weight)

    for name, count in (("token", layout.vocab), ("position", layout.positions)):
        key = f"embeddings.{name}_embedding.weight"
        yield Row(key, key, (count, width))
    for n in range(layout.layers):
        layer = f"encoder.layers.{n}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from same(f"{layer}.self_attn.{name}", (width, width))
        yield from same(f"{layer}.layer_norm1", (width,))
        yield from same(f"{layer}.mlp.fc1", (inner, width))
        yield from same(f"{layer}.mlp.fc2", (width, inner))
        yield from same(f"{layer}.layer_norm2", (width,))
    yield from same("final_layer_norm", (width,))


def _open_clip(layout: TextLayout) -> Iterator[Row]:
    width, inner = layout.width, layout.intermediate
    yield Row("token_embedding.weight", "text_model.embeddings.token_embedding.weight", (layout.vocab, width))
    yield Row("positional_embedding", "text_model.embeddings.position_embedding.weight", (layout.positions, width))
    for n in range(layout.layers):
        ldm, hf = f"transformer.resblocks.{n}", f"text_model.encoder.layers.{n}"
        for share, name in zip(THIRDS, ("q_proj", "k_proj", "v_proj"), strict=True):
            yield Row(f"{ldm}.attn.in_proj_weight", f"{hf}.self_attn.{name}.weight", (width, width), share)
            yield Row(f"{ldm}.attn.in_proj_bias", f"{hf}.self_attn.{name}.bias", (width,), share)
        yield from both(f"{ldm}.attn.out_proj", f"{hf}.self_attn.out_proj", (width, width))
        yield from both(f"{ldm}.ln_1", f"{hf}.layer_norm1", (width,))
        yield from both(f"{ldm}.mlp.c_fc", f"{hf}.mlp.fc1", (inner, width))
        yield from both(f"{ldm}.mlp.c_proj", f"{hf}.mlp.fc2", (width, inner))
        yield from both(f"{ldm}.ln_2", f"{hf}.layer_norm2", (width,))
    yield from both("ln_final", "text_model.final_layer_norm", (width,))
    if layout.projection:
        yield Row("text_projection", "text_projection.weight", (width, layout.projection), transposed=True)
