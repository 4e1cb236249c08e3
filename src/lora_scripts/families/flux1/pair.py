"""The two text encoders of FLUX.1 on the disk, told apart by what is in their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.flow import clip_l, llama_names, t5
from lora_scripts.families.flow.pieces import Pieces
from lora_scripts.families.flow.places import files_of
from lora_scripts.families.flux1.layout import Flux1Layout

_BOTH = f"text_encoder: [{clip_l.FILE}, {t5.FILE}]"
_FOLDERS = ("text_encoder", "text_encoder_2")
_CLIP, _T5 = "CLIP", "T5"


@dataclass(frozen=True)
class Pair:
    """Both, whole."""

    clip: clip_l.ClipSource
    t5: t5.T5Source


def find(layout: Flux1Layout, base: Path, given: Sequence[Path]) -> Pair:
    """The text encoders of a base: those that `text_encoder` names, in any order, else the base's own. UserErrors, all
    at once, for what is missing, not whole, or of another model."""
    faults: list[UserError] = []
    clips: list[clip_l.ClipSource] = []
    others: list[t5.T5Source] = []
    seen: list[str] = []
    for path in _places(base, given):
        try:
            seen.append(_kind(path))
            if seen[-1] == _CLIP:
                clips.append(clip_l.look(path, layout.pooled_width))
            else:
                others.append(t5.look(path, base, layout.text_width))
        except UserError as error:
            faults += error.errors
    for kind in (_CLIP, _T5):
        if seen.count(kind) > 1:
            faults.append(UserError(f"text_encoder names more than one {kind}", hint=f"write {_BOTH}"))
        if kind not in seen and (kind == _CLIP or not faults):
            text = f"this base needs two text encoders, and there is no {kind}"
            faults.append(UserError(text, file=base, hint=f"write {_BOTH}, in any order"))
    raise_all(faults)
    return Pair(clips[0], others[0])


def _places(base: Path, given: Sequence[Path]) -> list[Path]:
    """A file or folder for each; of a diffusers folder those of its parts."""
    if not given:
        places = [base / name for name in _FOLDERS if (base / name).is_dir()]
        if not places:
            what = "folder has no text_encoder" if base.is_dir() else "file holds no text encoders that are read"
            raise UserError(f"this {what}", file=base, hint=f"add {_BOTH}")
        return places
    inside = [[path / name for name in _FOLDERS if (path / name).is_dir()] or [path] for path in given]
    return [place for places in inside for place in places]


def _kind(path: Path) -> str:
    keys = Pieces(files_of(path), gguf=llama_names.t5).keys()
    if {clip_l.MARK, clip_l.MARK.removeprefix("text_model.")} & set(keys):
        return _CLIP
    if t5.MARK in keys:
        return _T5
    raise UserError("this is neither CLIP-L nor T5", file=path, hint=f"give {clip_l.FILE} and {t5.FILE}")
