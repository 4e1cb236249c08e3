"""CLIP-L as a text encoder in a file of its own, as facts that need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families.clip.tokenizer import VOCABULARY
from lora_scripts.families.flow.pieces import Pieces, require_floats
from lora_scripts.families.flow.places import files_of
from lora_scripts.families.sd.rows import Row, Shapes, check_rows, count_of, is_spare, size_of
from lora_scripts.families.sd.text import TextLayout, clip_rows

FILE = "clip_l.safetensors"
"""As people know it."""
MARK = "text_model.encoder.layers.0.self_attn.q_proj.weight"
_PREFIX = "text_model."
_UNREAD = ("embeddings.position_ids", "text_projection.weight", "logit_scale")


@dataclass(frozen=True)
class ClipSource:
    """A CLIP text encoder on the disk, whole: checked by `look`."""

    path: Path
    """A file, or the folder of a part."""
    files: tuple[Path, ...]
    layout: TextLayout

    def pieces(self) -> Pieces:
        return Pieces(self.files, (_PREFIX,))

    def rows(self) -> list[Row]:
        """Every parameter."""
        return clip_rows(self.layout, "")


def look(path: Path, width: int) -> ClipSource:
    """A file or folder with CLIP-L. UserErrors for one that is not whole, or whose pooled state has another width than
    a base reads."""
    files = files_of(path)
    pieces = Pieces(files, (_PREFIX,))
    source = ClipSource(path, files, _layout(pieces.shapes, path))
    layout = source.layout
    if (layout.width, layout.vocab) != (width, VOCABULARY):
        text = f"this CLIP has {layout.vocab} tokens of width {layout.width}, the base reads {VOCABULARY} of {width}"
        raise UserError(text, file=path, hint=f"give CLIP-L, {FILE}")
    read = [key for key in pieces.keys() if not (is_spare(key) or key in _UNREAD)]  # noqa: SIM118  it is no mapping
    plain = f"get the original file, {FILE}"
    check_rows(pieces.shapes, {"CLIP text encoder": source.rows()}, read, file=path, plain=plain)
    require_floats(pieces, {pieces.key_in_file(key) for key in read})
    return source


def _layout(shapes: Shapes, file: Path) -> TextLayout:
    return TextLayout(
        width=size_of(shapes, "embeddings.token_embedding.weight", 1, file),
        layers=count_of(shapes, "encoder.layers."),
        intermediate=size_of(shapes, "encoder.layers.0.mlp.fc1.weight", 0, file),
        vocab=size_of(shapes, "embeddings.token_embedding.weight", 0, file),
        positions=size_of(shapes, "embeddings.position_embedding.weight", 0, file),
    )
