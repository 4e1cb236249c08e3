"""Language models as text encoders, as facts that need no torch: parameters, place on the disk, tokenizer.

Facts: transformers' `Qwen3Model`, `Qwen2Model` and `MistralModel`, which are also what reads texts in Qwen3-VL,
Qwen2.5-VL and Mistral Small 3: without pictures their positions are those of any text. The published configurations of
a generation share the norms' epsilon and the rotation's base. A single file says nothing of these two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lora_scripts.errors import UserError
from lora_scripts.families.flow import llama_names, tekken
from lora_scripts.families.flow.pieces import Pieces, require_floats, require_package
from lora_scripts.families.flow.places import files_of, require_signs, tokenizer_of
from lora_scripts.families.flow.token_files import QWEN, shipped
from lora_scripts.families.sd.component import configured, number_of
from lora_scripts.families.sd.rows import Row, Shapes, check_rows, count_of, is_spare, size_of

L = TypeVar("L")
ROPE_THETA, EPSILON = 1_000_000.0, 1e-6
HEAD = 128
"""Channels of a head of every published Qwen2.5 from 3B on, and of Mistral Small, where no config says how many."""
_PLAIN = "get the original file"
_BRING = "add text_encoder: its file, or its folder (such as {file})"
_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
_TOWER = "visual."
"""What the keys of a Qwen's vision tower begin with."""
_MARKS = ("q_proj.weight", "q_norm.weight", "q_proj.bias")


@dataclass(frozen=True)
class Language:
    """What tells one generation from another."""

    words: str
    """What people call it."""
    file: str
    """As people know it."""
    model: str
    """Of its classes in transformers, what stands before `Model` and `Config`."""
    normed: bool = False
    """Whether q and k have norms."""
    biased: bool = False
    """Whether q, k and v have biases."""
    unread: tuple[str, ...] = ("lm_head.",)
    """What keys begin with that nobody reads."""
    sees: bool | None = False
    """Whether there is a vision tower: of two with the same layers that alone tells which it is. None: either."""
    theta: float = ROPE_THETA
    """The rotation's base, of one that does not say."""
    epsilon: float = EPSILON
    """Of the norms, likewise."""
    ended: bool = True
    """Whether there is a norm behind its last layer that may be read; else its file may be cut off before that."""
    tekken: bool = False
    """Whether its tokenizer may be a Tekken, as a tensor of its file or as tekken.json."""
    turned: str = ""
    """What its GGUF files are called inside, in which each head's rows of q and k lie in llama.cpp's order; "": they
    are the model's, and it bears its own name."""

    def knows(self, shapes: Shapes, config: Mapping[str, Any]) -> bool:
        """Whether a file, or a folder with this config, is of this generation."""
        there, normed, biased = (f"layers.0.self_attn.{name}" in shapes for name in _MARKS)
        sees = any(key.startswith(_TOWER) for key in shapes) or "_vl" in str(config.get("model_type", ""))
        return there and (normed, biased) == (self.normed, self.biased) and self.sees in (None, sees)


QWEN3 = Language("Qwen3", "qwen_3_4b.safetensors", "Qwen3", normed=True)
QWEN3_VL = Language(
    "Qwen3-VL",
    "qwen3vl_4b_bf16.safetensors",
    "Qwen3",
    normed=True,
    unread=("lm_head.", _TOWER),
    sees=True,
    theta=5_000_000.0,
)
QWEN25_VL = Language(
    "Qwen2.5-VL", "qwen_2.5_vl_7b.safetensors", "Qwen2", biased=True, unread=("lm_head.", _TOWER), sees=None
)
MISTRAL3 = Language(
    "Mistral Small 3",
    "mistral_3_small_flux2_bf16.safetensors",
    "Mistral",
    unread=("lm_head.", "vision_tower.", "multi_modal_projector.", "norm.", tekken.KEY),
    sees=None,
    theta=1_000_000_000.0,
    epsilon=1e-5,
    ended=False,
    tekken=True,
    turned="llama",
)
_KNOWN = (QWEN3, QWEN3_VL, QWEN25_VL, MISTRAL3)


@dataclass(frozen=True)
class LanguageLayout:
    """What tells one of a generation from another."""

    kind: Language
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
    turned: bool = False
    """Whether q and k lie in llama.cpp's order."""


@dataclass(frozen=True)
class Source:
    """A text encoder on the disk, whole: checked by `find`."""

    path: Path
    """A file, or the folder of a part."""
    files: tuple[Path, ...]
    tokenizer: Path
    layout: LanguageLayout

    def pieces(self) -> Pieces:
        return _pieces(self.files)


def _pieces(files: Sequence[Path]) -> Pieces:
    return Pieces(files, _PREFIXES, gguf=llama_names.language)


def finder(
    width: Callable[[L], int], signs: Sequence[str], kind: Language = QWEN3, layers: int = 0
) -> Callable[[L, Path, Sequence[Path]], Source]:
    """As `Transformer.text` asks. `width`: of the states that a base reads; `signs`: of the captions' template, and
    what fills it up; `layers`: behind how many a base reads, where that is one number for all."""
    return lambda layout, base, given: find(kind, base, given, width(layout), signs, layers)


def find(
    kind: Language, base: Path, given: Sequence[Path], width: int, signs: Sequence[str], layers: int = 0
) -> Source:
    """The text encoder of a base: what `text_encoder` names, else the base's own.

    `width`: of the states that the rest of the model reads; `layers`: of which it must have so many at least.
    UserErrors for one that is not there, not whole, not of its kind, of another width, or with fewer layers.
    """
    path = _place(kind, base, given)
    files = files_of(path)
    pieces = _pieces(files)
    layout = _layout(kind, pieces, path)
    if layout.width != width:
        text = f"this text encoder gives states of width {layout.width}, the base reads {width}"
        raise UserError(text, file=path, hint="give the one that the base was made with")
    if layout.layers < layers:
        text = f"this text encoder has {layout.layers} layers, the base reads the states behind {layers}"
        raise UserError(text, file=path, hint=f"give {kind.file}")
    unknown = [key for key in pieces.keys() if not (is_spare(key) or key.startswith(kind.unread))]  # noqa: SIM118
    require_floats(pieces, {pieces.key_in_file(key) for key in unknown})  # first: blocks have other shapes, too
    check_rows(pieces.shapes, {"text encoder": rows(layout)}, unknown, file=path, plain=_PLAIN)
    require_package(pieces)
    return Source(path, files, _tokenizer(layout, pieces, path, base, signs), layout)


def _tokenizer(layout: LanguageLayout, pieces: Pieces, path: Path, base: Path, signs: Sequence[str]) -> Path:
    """Of one that lies in the file of the text encoder, that file: beside it there may be another model's."""
    if not layout.kind.tekken:
        own = shipped(QWEN, layout.vocab)
        return tokenizer_of(path, base, "tokenizer", signs, also=("processor",), shipped=own)
    for file, header in pieces.headers.items():
        if tekken.KEY in header.tensors:
            require_signs(file, signs, "tokenizer")
            return file
    return tokenizer_of(path, base, "tokenizer", signs, ("tokenizer.json", tekken.FILE))


def _place(kind: Language, base: Path, given: Sequence[Path]) -> Path:
    if len(given) > 1:
        raise UserError("this base has one text encoder", file=base, hint=f"write text_encoder: {given[0].as_posix()}")
    if not given:
        if not (base / "text_encoder").is_dir():
            what = "folder has no text_encoder" if base.is_dir() else "file holds no text encoder that is read"
            raise UserError(f"this {what}", file=base, hint=_BRING.format(file=kind.file))
        return base / "text_encoder"
    return given[0] / "text_encoder" if (given[0] / "text_encoder").is_dir() else given[0]


def _layout(kind: Language, pieces: Pieces, file: Path) -> LanguageLayout:
    """Of a folder by its config, too, of a GGUF file by its metadata."""
    if not file.is_dir():
        return _told(kind, pieces, file, llama_names.config_of(next(iter(pieces.headers.values())).metadata))
    with configured(file) as config:
        return _told(kind, pieces, file, config)


def _told(kind: Language, pieces: Pieces, file: Path, config: Mapping[str, Any]) -> LanguageLayout:
    shapes = pieces.shapes
    if not kind.knows(shapes, config):
        hint = f"give {kind.file}, or the folder of the text encoder"
        other = next((f", but {own.words}" for own in _KNOWN if own.knows(shapes, config)), "")
        raise UserError(f"this is no {kind.words} text encoder{other}", file=file, hint=hint)
    packed = any(pieces.is_packed(one) for one in pieces.headers)
    if packed and kind.turned and config.get("model_type") != kind.turned:
        text = f"this GGUF file is of the kind {config.get('model_type')}, whose order of numbers is not known here"
        raise UserError(text, file=file, hint=f"give one of the kind {kind.turned}, or {kind.file}")
    config = _filled({**config, **_table(config, "text_config")})
    width, rope = size_of(shapes, "embed_tokens.weight", 1, file), _filled(_table(config, "rope_parameters"))
    wide = size_of(shapes, "layers.0.self_attn.q_proj.weight", 0, file)
    if kind.normed:
        head = size_of(shapes, "layers.0.self_attn.q_norm.weight", 0, file)
    elif "num_attention_heads" in config:
        head = wide // int(number_of(config, "num_attention_heads", 0))
    else:
        head = HEAD
    return LanguageLayout(
        kind=kind,
        width=width,
        layers=count_of(shapes, "layers."),
        intermediate=size_of(shapes, "layers.0.mlp.gate_proj.weight", 0, file),
        heads=wide // head,
        groups=size_of(shapes, "layers.0.self_attn.k_proj.weight", 0, file) // head,
        head=head,
        vocab=size_of(shapes, "embed_tokens.weight", 0, file),
        theta=number_of(rope, "rope_theta", number_of(config, "rope_theta", kind.theta)),
        epsilon=number_of(config, "rms_norm_eps", kind.epsilon),
        turned=packed and bool(kind.turned),
    )


def _table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A config inside of a config, {} for none. ValueError for what is none."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r}, and not a table")
    return value


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that say nothing."""
    return {key: value for key, value in config.items() if value}


def rows(layout: LanguageLayout, layers: int | None = None) -> list[Row]:
    """Every parameter that is read; with fewer `layers` only those of the first so many, and no norm behind them."""
    wide, out = layout.heads * layout.head, layout.groups * layout.head

    def block(n: int) -> Iterator[Row]:
        at = f"layers.{n}"
        yield _row(f"{at}.input_layernorm.weight", layout.width)
        for name, size, heads in (("q_proj", wide, layout.heads), ("k_proj", out, layout.groups), ("v_proj", out, 0)):
            row = _row(f"{at}.self_attn.{name}.weight", size, layout.width)
            yield row._replace(heads=heads) if layout.turned else row
            if layout.kind.biased:
                yield _row(f"{at}.self_attn.{name}.bias", size)
        yield _row(f"{at}.self_attn.o_proj.weight", layout.width, wide)
        if layout.kind.normed:
            yield _row(f"{at}.self_attn.q_norm.weight", layout.head)
            yield _row(f"{at}.self_attn.k_norm.weight", layout.head)
        yield _row(f"{at}.post_attention_layernorm.weight", layout.width)
        yield _row(f"{at}.mlp.gate_proj.weight", layout.intermediate, layout.width)
        yield _row(f"{at}.mlp.up_proj.weight", layout.intermediate, layout.width)
        yield _row(f"{at}.mlp.down_proj.weight", layout.width, layout.intermediate)

    count = layout.layers if layers is None else layers
    table = [_row("embed_tokens.weight", layout.vocab, layout.width), *(row for n in range(count) for row in block(n))]
    return [*table, *([_row("norm.weight", layout.width)] if ends(layout, count) else [])]


def ends(layout: LanguageLayout, layers: int) -> bool:
    """Whether a norm stands behind the first so many layers."""
    return layout.kind.ended and layers == layout.layers


def _row(key: str, *shape: int) -> Row:
    return Row(key, key, shape)


def config_of(layout: LanguageLayout, layers: int) -> dict[str, Any]:
    """Arguments of transformers' configuration, of the first so many layers."""
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
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": False,
    }
