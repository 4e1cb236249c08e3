"""Qwen3 as a text encoder, as facts that need no torch: its parameters, its place on the disk, its tokenizer.

Facts: transformers' `Qwen3Model`; the published configurations of 0.6B to 8B, which share the rotation's base and the
norms' epsilon. A single file says nothing of these two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lora_scripts.errors import UserError
from lora_scripts.families.flow.pieces import Pieces, require_floats
from lora_scripts.families.flow.places import files_of, tokenizer_of
from lora_scripts.families.sd.check import read_config
from lora_scripts.families.sd.rows import Row, Shapes, check_rows, count_of, is_spare, size_of

L = TypeVar("L")
ROPE_THETA, EPSILON = 1_000_000.0, 1e-6
FILE = "qwen_3_4b.safetensors"
"""As people know it."""
_PLAIN = "get the original file"
_BRING = "add text_encoder: its file, with tokenizer.json beside it, or its folder"
_PREFIXES = ("model.language_model.", "model.")


@dataclass(frozen=True)
class Qwen3Layout:
    """What tells one Qwen3 from another."""

    width: int
    layers: int
    intermediate: int
    heads: int
    groups: int
    """Heads of keys and values."""
    head: int
    """Channels of a head."""
    vocab: int
    theta: float = ROPE_THETA
    epsilon: float = EPSILON


@dataclass(frozen=True)
class Source:
    """A text encoder on the disk, whole: checked by `find`."""

    path: Path
    """A file, or the folder of a part."""
    files: tuple[Path, ...]
    tokenizer: Path
    layout: Qwen3Layout

    def pieces(self) -> Pieces:
        return Pieces(self.files, _PREFIXES)


def finder(width: Callable[[L], int], signs: Sequence[str]) -> Callable[[L, Path, Sequence[Path]], Source]:
    """As `Transformer.text` asks. `width`: of the states that a base reads; `signs`: of the captions' template, and
    what fills it up."""
    return lambda layout, base, given: find(base, given, width(layout), signs)


def find(base: Path, given: Sequence[Path], width: int, signs: Sequence[str]) -> Source:
    """The text encoder of a base: what `text_encoder` names, else the base's own.

    `width`: of the states that the rest of the model reads. UserErrors for one that is not there, not whole, not a
    Qwen3, or of another width.
    """
    path = _place(base, given)
    files = files_of(path)
    pieces = Pieces(files, _PREFIXES)
    layout = _layout(pieces.shapes, path)
    if layout.width != width:
        text = f"this text encoder gives states of width {layout.width}, the base reads {width}"
        raise UserError(text, file=path, hint="give the one that the base was made with")
    unknown = [key for key in pieces.keys() if not (is_spare(key) or key == "lm_head.weight")]  # noqa: SIM118
    check_rows(pieces.shapes, {"text encoder": rows(layout)}, unknown, file=path, plain=_PLAIN)
    require_floats(pieces, {pieces.key_in_file(key) for key in unknown})
    return Source(path, files, tokenizer_of(path, base, "tokenizer", signs), layout)


def _place(base: Path, given: Sequence[Path]) -> Path:
    if len(given) > 1:
        raise UserError("this base has one text encoder", file=base, hint=f"write text_encoder: {given[0].as_posix()}")
    if not given:
        if not (base / "text_encoder").is_dir():
            what = "folder has no text_encoder" if base.is_dir() else "file holds no text encoder that is read"
            raise UserError(f"this {what}", file=base, hint=f"{_BRING} (such as {FILE})")
        return base / "text_encoder"
    return given[0] / "text_encoder" if (given[0] / "text_encoder").is_dir() else given[0]


def _layout(shapes: Shapes, file: Path) -> Qwen3Layout:
    if "layers.0.self_attn.q_norm.weight" not in shapes:
        hint = f"give {FILE}, or the folder of the text encoder"
        raise UserError("this is no Qwen3 text encoder", file=file, hint=hint)
    config = (read_config(file) or {}) if file.is_dir() else {}
    head = size_of(shapes, "layers.0.self_attn.q_norm.weight", 0, file)
    rope: Mapping[str, Any] = config.get("rope_parameters") or {}
    return Qwen3Layout(
        width=size_of(shapes, "embed_tokens.weight", 1, file),
        layers=count_of(shapes, "layers."),
        intermediate=size_of(shapes, "layers.0.mlp.gate_proj.weight", 0, file),
        heads=size_of(shapes, "layers.0.self_attn.q_proj.weight", 0, file) // head,
        groups=size_of(shapes, "layers.0.self_attn.k_proj.weight", 0, file) // head,
        head=head,
        vocab=size_of(shapes, "embed_tokens.weight", 0, file),
        theta=float(rope.get("rope_theta") or config.get("rope_theta") or ROPE_THETA),
        epsilon=float(config.get("rms_norm_eps") or EPSILON),
    )


def rows(layout: Qwen3Layout, layers: int | None = None) -> list[Row]:
    """Every parameter; with `layers` only those of the first so many, and no norm behind them."""
    wide, out = layout.heads * layout.head, layout.groups * layout.head

    def block(n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        at = f"layers.{n}"
        yield f"{at}.input_layernorm", (layout.width,)
        yield f"{at}.self_attn.q_proj", (wide, layout.width)
        yield f"{at}.self_attn.k_proj", (out, layout.width)
        yield f"{at}.self_attn.v_proj", (out, layout.width)
        yield f"{at}.self_attn.o_proj", (layout.width, wide)
        yield f"{at}.self_attn.q_norm", (layout.head,)
        yield f"{at}.self_attn.k_norm", (layout.head,)
        yield f"{at}.post_attention_layernorm", (layout.width,)
        yield f"{at}.mlp.gate_proj", (layout.intermediate, layout.width)
        yield f"{at}.mlp.up_proj", (layout.intermediate, layout.width)
        yield f"{at}.mlp.down_proj", (layout.width, layout.intermediate)

    table: list[tuple[str, tuple[int, ...]]] = [("embed_tokens", (layout.vocab, layout.width))]
    table += [row for n in range(layout.layers if layers is None else layers) for row in block(n)]
    table += [] if layers is not None else [("norm", (layout.width,))]
    return [Row(f"{name}.weight", f"{name}.weight", shape) for name, shape in table]


def config_of(layout: Qwen3Layout, layers: int) -> dict[str, Any]:
    """Arguments of transformers' Qwen3Config, of the first so many layers."""
    return {
        "vocab_size": layout.vocab,
        "hidden_size": layout.width,
        "intermediate_size": layout.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": layout.heads,
        "num_key_value_heads": layout.groups,
        "head_dim": layout.head,
        "rms_norm_eps": layout.epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": layout.theta},
        "tie_word_embeddings": True,
        "use_cache": False,
    }
