"""The three text encoders of Stable Diffusion 3 on the disk, told apart by what is in their files: CLIP-L, CLIP-G, T5.

They lie in files of their own, in a diffusers folder, or in the base's own file behind `text_encoders.`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.families.flow import clip_l, llama_names, t5
from lora_scripts.families.flow.clip_l import CLIP_G, CLIP_L, ClipSource
from lora_scripts.families.flow.pieces import Pieces
from lora_scripts.families.flow.places import files_of
from lora_scripts.families.flow.t5 import T5Source
from lora_scripts.families.sd3.layout import Sd3Layout
from lora_scripts.formats.gguf import is_gguf
from lora_scripts.formats.header import read_header

INSIDE = "text_encoders."
"""What their keys begin with in a base's own file."""
_L, _G, _T5 = _KINDS = (CLIP_L.words, CLIP_G.words, "T5")
_STARTS = {
    kind: f"{INSIDE}{name}.transformer." for kind, name in zip(_KINDS, ("clip_l", "clip_g", "t5xxl"), strict=True)
}
_FILES = (CLIP_L.file, CLIP_G.file, t5.FILE)
_ALL = f"text_encoder: [{', '.join(_FILES)}]"
_FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_TABLE = "embeddings.token_embedding.weight"


class Place(NamedTuple):
    """Where one may lie."""

    path: Path
    inside: str = ""
    """What its keys begin with there."""


@dataclass(frozen=True)
class Trio:
    """All three, whole."""

    clip_l: ClipSource
    clip_g: ClipSource
    t5: T5Source
    width: int
    """Of the states that the base reads."""


def find(layout: Sd3Layout, base: Path, given: Sequence[Path]) -> Trio:
    """The text encoders of a base: those that `text_encoder` names, in any order, and of the others the base's own.
    UserErrors, all at once, for what is missing, not whole, or of another model."""
    faults = Faults()
    named = [place for path in given for place in faults.attempt(partial(_named, path)) or ()]
    places = _sorted(layout, named, faults)
    if len(places) < len(_KINDS):
        places = {**_sorted(layout, _own(base), faults), **places}
    missing = [kind for kind in _KINDS if kind not in places]
    if missing and not faults:
        if len(missing) == len(_KINDS):
            what = "folder has no text_encoder" if base.is_dir() else "file holds no text encoders"
            text, hint = f"this {what}", f"add {_ALL}"
        else:
            text = f"this base needs three text encoders, and there is no {' and no '.join(missing)}"
            hint = f"write {_ALL}, in any order"
        faults.append(UserError(text, file=base, hint=hint))
    found: dict[str, Any] = {
        kind: faults.attempt(partial(_look, layout, base, kind, place)) for kind, place in places.items()
    }
    raise_all(faults)
    return Trio(found[_L], found[_G], found[_T5], layout.text_width)


def _look(layout: Sd3Layout, base: Path, kind: str, at: Place) -> Any:
    """A folder's CLIP-L has a projection, which diffusers reads; a file's is not read, as ComfyUI does it."""
    if kind == _T5:
        return t5.look(at.path, base, layout.text_width, folder="tokenizer_3", inside=at.inside)
    narrow, wide = layout.clip_widths
    if kind == _G:
        return clip_l.look(at.path, wide, CLIP_G, inside=at.inside)
    return clip_l.look(at.path, narrow, inside=at.inside, projected=at.path.is_dir())


def _named(path: Path) -> list[Place]:
    """What a file or folder that is named holds: it alone, or all that are in it."""
    return _own(path) or [Place(path)]


def _own(base: Path) -> list[Place]:
    """What lies in a diffusers folder, or in one file with everything."""
    if base.is_dir():
        return [Place(base / name) for name in _FOLDERS if (base / name).is_dir()]
    keys = () if is_gguf(base) else read_header(base).tensors
    return [Place(base, start) for start in _STARTS.values() if any(key.startswith(start) for key in keys)]


def _sorted(layout: Sd3Layout, places: Iterable[Place], faults: Faults) -> dict[str, Place]:
    """By what is in them."""
    found: dict[str, Place] = {}
    for place in places:
        kind = faults.attempt(partial(_kind, layout, place))
        if kind in found:
            faults.append(UserError(f"text_encoder names more than one {kind}", hint=f"write {_ALL}"))
        elif kind is not None:
            found[kind] = place
    return found


def _kind(layout: Sd3Layout, place: Place) -> str:
    if place.inside:
        return next(kind for kind, start in _STARTS.items() if start == place.inside)
    shapes = Pieces(files_of(place.path), ("text_model.",), gguf=llama_names.t5).shapes
    if t5.MARK in shapes:
        return _T5
    if clip_l.MARK.removeprefix("text_model.") not in shapes or len(shapes.get(_TABLE, ())) != 2:
        text = "this is neither CLIP-L nor CLIP-G nor T5"
        raise UserError(text, file=place.path, hint=f"give {', '.join(_FILES[:2])} and {_FILES[2]}")
    width, (narrow, wide) = shapes[_TABLE][1], layout.clip_widths
    if width not in (narrow, wide):
        text = f"this CLIP is {width} wide, and the base reads CLIP-L of {narrow} and CLIP-G of {wide}"
        raise UserError(text, file=place.path, hint=f"give {_FILES[0]} and {_FILES[1]}")
    return _L if width == narrow else _G
