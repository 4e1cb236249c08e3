"""T5's encoder as a text encoder, as facts that need no torch: its parameters, its place on the disk, its tokenizer.

Facts: transformers' `T5EncoderModel`; version 1.1 (T5-XXL: 24 layers of 4096 channels), whose MLP has a gate and whose
attention has no scale; places of tokens are told by their distance, in 32 buckets up to 128, alike in every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families.flow import llama_names, token_files
from lora_scripts.families.flow.pieces import Pieces, require_floats, require_package
from lora_scripts.families.flow.places import files_of, tokenizer_of
from lora_scripts.families.flow.token_files import shipped
from lora_scripts.families.sd.check import read_config
from lora_scripts.families.sd.rows import Row, Shapes, check_rows, count_of, is_spare, size_of

FILE = "t5xxl_fp16.safetensors"
"""As people know it."""
END, FILL = "</s>", "<pad>"
"""Signs of its texts."""
_FOLDERS = ("text_encoder_2", "text_encoder")
"""Of a diffusers folder, in which it may be the second."""
MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
_SHARED, _COPY = "shared.weight", "encoder.embed_tokens.weight"
_UNREAD = (_COPY, "spiece_model", "lm_head.weight")
"""Which some files hold, too: the table of tokens once more, the tokenizer as bytes."""
_USUAL = {"feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}
"""Of a config; a single file says nothing of these."""


@dataclass(frozen=True)
class T5Layout:
    """What tells one T5 of version 1.1 from another."""

    width: int
    layers: int
    heads: int
    head: int
    """Channels of a head."""
    inner: int
    """Of the MLP."""
    vocab: int
    buckets: int


@dataclass(frozen=True)
class T5Source:
    """A T5 on the disk, whole: checked by `look`."""

    path: Path
    """A file, or the folder of a part."""
    files: tuple[Path, ...]
    tokenizer: Path
    folder: str
    """Of the tokenizer, in a diffusers folder."""
    layout: T5Layout
    inside: str = ""
    """What its keys begin with in a file of several models."""

    def pieces(self) -> Pieces:
        return Pieces(self.files, gguf=llama_names.t5, inside=self.inside)


def find_alone(base: Path, given: Sequence[Path], width: int) -> T5Source:
    """The T5 of a base that has no other text encoder: the one that `text_encoder` names, else the base's own.
    UserErrors as `look`, and for what is not there."""
    if len(given) > 1:
        text = "this base has one text encoder, T5"
        raise UserError(text, file=base, hint=f"leave the others out of text_encoder: write {FILE} alone")
    place = given[0] if given else base
    inside = next((place / name for name in _FOLDERS if (place / name).is_dir()), place)
    if not given and inside is place:
        what = "folder has no text_encoder" if base.is_dir() else "file holds no text encoder that is read"
        hint = f"add text_encoder: its file, or its folder (such as {FILE})"
        raise UserError(f"this {what}", file=base, hint=hint)
    return look(inside, base, width, also=("tokenizer",), page="FLUX.1's page")


def look(
    path: Path,
    base: Path,
    width: int,
    *,
    folder: str = "tokenizer_2",
    also: Sequence[str] = (),
    page: str = "the model's page",
    inside: str = "",
) -> T5Source:
    """A file or folder with a T5. UserErrors for one that is not whole, or gives states of another width than a base
    reads. `folder`, `also`, `page`: of its tokenizer, as of `tokenizer_of`; `inside`: as of `T5Source`."""
    files = files_of(path)
    pieces = Pieces(files, gguf=llama_names.t5, inside=inside)
    if MARK not in pieces.keys():  # noqa: SIM118  it is no mapping
        raise UserError("this is no T5", file=path, hint=f"give {FILE}, or the folder of the text encoder")
    layout = _layout(pieces.shapes, path)
    if layout.width != width:
        text = f"this T5 gives states of width {layout.width}, the base reads {width}"
        raise UserError(text, file=path, hint=f"give the one that the base was made with, {FILE}")
    config = (read_config(path) or {}) if path.is_dir() else {}
    odd = [f"{key}: {config[key]}" for key, usual in _USUAL.items() if config.get(key, usual) != usual]
    if odd:
        raise UserError(f"this is no T5 of version 1.1 ({', '.join(odd)})", file=path, hint=f"give {FILE}")
    spare = ("decoder.", *_UNREAD)
    read = [key for key in pieces.keys() if not (is_spare(key) or key.startswith(spare))]  # noqa: SIM118  no mapping
    check_rows(pieces.shapes, {"T5": rows(layout)}, read, file=path, plain=f"get the original file, {FILE}")
    require_floats(pieces, {pieces.key_in_file(key) for key in read})
    require_package(pieces)
    own = shipped(token_files.T5, layout.vocab)
    tokenizer = tokenizer_of(path, base, folder, (END, FILL), also=also, page=page, shipped=own)
    return T5Source(path, files, tokenizer, folder, layout, inside)


def _layout(shapes: Shapes, file: Path) -> T5Layout:
    at = "encoder.block.0.layer"
    bias = f"{at}.0.SelfAttention.relative_attention_bias.weight"
    heads = size_of(shapes, bias, 1, file)
    return T5Layout(
        width=size_of(shapes, _SHARED, 1, file),
        layers=count_of(shapes, "encoder.block."),
        heads=heads,
        head=size_of(shapes, MARK, 0, file) // heads,
        inner=size_of(shapes, f"{at}.1.DenseReluDense.wi_0.weight", 0, file),
        vocab=size_of(shapes, _SHARED, 0, file),
        buckets=size_of(shapes, bias, 0, file),
    )


def rows(layout: T5Layout) -> list[Row]:
    """Every parameter; the files have the model's own names."""

    def block(n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        at, inner = f"encoder.block.{n}.layer", layout.heads * layout.head
        for name in "qkv":
            yield f"{at}.0.SelfAttention.{name}", (inner, layout.width)
        yield f"{at}.0.SelfAttention.o", (layout.width, inner)
        if n == 0:
            yield f"{at}.0.SelfAttention.relative_attention_bias", (layout.buckets, layout.heads)
        yield f"{at}.0.layer_norm", (layout.width,)
        yield f"{at}.1.DenseReluDense.wi_0", (layout.inner, layout.width)
        yield f"{at}.1.DenseReluDense.wi_1", (layout.inner, layout.width)
        yield f"{at}.1.DenseReluDense.wo", (layout.width, layout.inner)
        yield f"{at}.1.layer_norm", (layout.width,)

    shared = (layout.vocab, layout.width)
    table = [row for n in range(layout.layers) for row in block(n)]
    table.append(("encoder.final_layer_norm", (layout.width,)))
    own = [Row(f"{name}.weight", f"{name}.weight", shape) for name, shape in table]
    return [Row(_SHARED, _SHARED, shared), Row(_SHARED, _COPY, shared), *own]


def config_of(layout: T5Layout) -> dict[str, Any]:
    """Arguments of transformers' T5Config."""
    return {
        **_USUAL,
        "vocab_size": layout.vocab,
        "d_model": layout.width,
        "d_kv": layout.head,
        "d_ff": layout.inner,
        "num_layers": layout.layers,
        "num_heads": layout.heads,
        "relative_attention_num_buckets": layout.buckets,
        "use_cache": False,
    }
