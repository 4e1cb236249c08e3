"""CLIP-L, and CLIP-G in the same names, as text encoders in files of their own, as facts that need no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lora_scripts.errors import UserError
from lora_scripts.families.clip.tokenizer import MAX_LENGTH, VOCABULARY
from lora_scripts.families.flow.pieces import Pieces, require_floats
from lora_scripts.families.flow.places import files_of
from lora_scripts.families.names import Base, Layer, Names
from lora_scripts.families.sd.rows import Row, check_rows, is_spare, scale_key
from lora_scripts.families.sd.text import TextLayout, clip_layout, clip_rows

FILE = "clip_l.safetensors"
"""As people know it."""
MARK = "text_model.encoder.layers.0.self_attn.q_proj.weight"
_PREFIX = "text_model."
_PROJECTION = "text_projection.weight"
_UNREAD = ("embeddings.position_ids", _PROJECTION, "logit_scale")
PART = "text_encoder"
"""What our paths of its layers begin with."""
LAYERS, MLP = 12, 4
"""How deep it is, and how many times its width its MLPs are."""
STANDARD = TextLayout(768, LAYERS, MLP * 768, VOCABULARY, MAX_LENGTH)
"""As published."""


class Clip(NamedTuple):
    """What tells one published CLIP from the other."""

    words: str
    file: str
    """As people know it."""
    layers: int
    activation: str
    projected: bool
    """Whether its pooled state goes through a projection, which the file then has."""


CLIP_L = Clip("CLIP-L", FILE, LAYERS, "quick_gelu", projected=False)
CLIP_G = Clip("CLIP-G", "clip_g.safetensors", 32, "gelu", projected=True)


@dataclass(frozen=True)
class ClipSource:
    """A CLIP text encoder on the disk, whole: checked by `look`."""

    path: Path
    """A file, or the folder of a part."""
    files: tuple[Path, ...]
    layout: TextLayout
    inside: str = ""
    """What its keys begin with in a file of several models."""

    def pieces(self) -> Pieces:
        return Pieces(self.files, (_PREFIX,), inside=self.inside)

    def rows(self) -> list[Row]:
        """Every parameter."""
        width = self.layout.projection
        return [*clip_rows(self.layout, ""), *([Row(_PROJECTION, _PROJECTION, (width, width))] if width else [])]


def look(path: Path, width: int, kind: Clip = CLIP_L, *, inside: str = "", projected: bool = False) -> ClipSource:
    """A file or folder with a CLIP. UserErrors for one that is not whole, or whose pooled state has another width than
    a base reads.

    `inside`: as of `ClipSource`; `projected`: that a projection is read where there is one, though the CLIP is one
    without.
    """
    files = files_of(path)
    pieces = Pieces(files, (_PREFIX,), inside=inside)
    has = kind.projected or (projected and _PROJECTION in pieces.shapes)
    layout = replace(clip_layout(pieces.shapes, "", path), activation=kind.activation, projection=width if has else 0)
    source = ClipSource(path, files, layout, inside)
    if (layout.width, layout.vocab) != (width, VOCABULARY):
        text = f"this CLIP has {layout.vocab} tokens of width {layout.width}, the base reads {VOCABULARY} of {width}"
        raise UserError(text, file=path, hint=f"give {kind.words}, {kind.file}")
    if layout.intermediate != MLP * width or layout.layers > kind.layers:
        text = f"this CLIP has {layout.layers} layers with MLPs {layout.intermediate} wide"
        words = f"{text}, {kind.words} has {kind.layers} of {MLP * width}"
        raise UserError(words, file=path, hint=f"give {kind.file}")
    unread = {key for key in _UNREAD if not (has and key == _PROJECTION)}
    unread |= {scale for key in unread if (scale := scale_key(key, pieces.keys())) is not None}
    read = [key for key in pieces.keys() if not (is_spare(key) or key in unread)]  # noqa: SIM118  it is no mapping
    plain = f"get the original file, {kind.file}"
    check_rows(pieces.shapes, {"CLIP text encoder": source.rows()}, read, file=path, plain=plain)
    require_floats(pieces, {pieces.key_in_file(key) for key in read})
    return source


# --- what a LoRA may change -------------------------------------------------------------------------------------------


def of_width(width: int) -> TextLayout:
    """The CLIP-L whose pooled state is so wide: the published one, or one as narrow as its base."""
    return replace(STANDARD, width=width, intermediate=MLP * width)


def layers(layout: TextLayout, *, shapes: bool) -> Iterator[Layer]:
    """Every linear layer; without `shapes` only their names."""
    for row in clip_rows(layout, ""):
        if row.hf.endswith(".weight") and len(row.shape) == 2 and ".embeddings." not in row.hf:
            hf = row.hf.removesuffix(".weight")
            path, flat = f"{PART}.{hf.removeprefix('text_model.')}", hf.replace(".", "_")
            yield Layer(path, hf, hf, f"lora_te1_{flat}", row.shape if shapes else ())


def weights(path: Path, width: int) -> dict[str, str]:
    """Our module path -> the key of its weight in a file. UserErrors as `look`."""
    source = look(path, width)
    pieces = source.pieces()
    own = layers(source.layout, shapes=False)
    return {layer.path: pieces.key_in_file(layer.ldm.removeprefix(_PREFIX) + ".weight") for layer in own}


def with_clip(names: Names, refused: dict[str, str]) -> Names:
    """A family's names with those of CLIP-L, its first text encoder.

    Other models have the same CLIP: a file is of this family by its other layers, or by what it says of itself. Facts:
    kohya's sd-scripts (`lora_te1_`), diffusers (`text_encoder.`), ComfyUI's generic names, and what trainers derive
    from the flatter modules of transformers 5.6. `refused`: as of `Names`.
    """
    kohya, diffusers, others = dict(names.kohya), dict(names.diffusers), dict(names.others)
    for layer in layers(STANDARD, shapes=False):
        kohya[layer.path], diffusers[layer.path] = layer.kohya, f"{PART}.{layer.hf}"
        flat = layer.kohya.replace("_text_model_", "_")
        others |= dict.fromkeys((*layer.native, flat, layer.kohya.replace("lora_te1_", "lora_te_")), layer.path)
    return replace(names, kohya=kohya, diffusers=diffusers, others=others, own=names.stems, refused=refused)


def with_layers(base: Base, layout: TextLayout | None) -> Base:
    """A base with the layers of its CLIP-L; without a layout those of the published one, without shapes."""
    own = layers(layout or STANDARD, shapes=layout is not None)
    return replace(base, layers=(*base.layers, *own))
