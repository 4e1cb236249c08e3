"""Masks: which parts of a picture count in training. White counts, black does not."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lora_scripts.data.buckets import View
from lora_scripts.data.findings import IMAGE_SUFFIXES
from lora_scripts.data.image import load_alpha, load_rgb, size_of
from lora_scripts.data.scan import Sample
from lora_scripts.errors import Faults, UserError, raise_all

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = tuple(sorted(IMAGE_SUFFIXES, key=lambda suffix: suffix != ".png"))
"""Of masks, the likeliest first."""
MOST = 10
"""Faults that are told at once."""


def find_masks(samples: Sequence[Sample], folder: Path) -> dict[str, Path]:
    """Sample's name -> the picture of the same name (the suffix may differ) in the mask folder; UserErrors for gaps.

    Where none has exactly that name, case does not count, nor in which of two ways an accent is written: macOS and
    Windows keep one name for both.
    """
    found, faults = {}, []
    others: dict[str, Path] | None = None
    for sample in samples:
        stem = PurePosixPath(sample.name).with_suffix("")
        near = [folder / f"{stem}{suffix}" for suffix in SUFFIXES]
        path = next((p for p in near if p.is_file()), None)
        if path is None:
            others = _byfolded(folder) if others is None else others
            path = others.get(folded(stem))
        if path is None:
            hint = f"add {near[0]}, white where the picture counts"
            faults.append(UserError("has no mask", file=sample.path, hint=hint))
        else:
            found[sample.name] = path
    raise_first(faults)
    return found


def require_masks(samples: Sequence[Sample], folder: Path | None) -> None:
    """UserErrors for samples without a mask in the folder, or (None) without transparency, and for masks of another
    shape: asked before a model is loaded, by the heads of the files alone."""
    found = {sample.name: sample.path for sample in samples} if folder is None else find_masks(samples, folder)
    faults = Faults()
    for sample in samples:
        faults.attempt(partial(_check, sample, found[sample.name], own=folder is None))
    raise_first(faults)


def _check(sample: Sample, path: Path, *, own: bool) -> None:
    try:
        size = size_of(path)
        with Image.open(path) as image:
            transparent = image.has_transparency_data
    except (UserError, OSError, SyntaxError, ValueError):
        return  # told by whoever reads it
    if own and not transparent:
        raise _opaque(path)
    if not own:
        _check_shape(path, size, (sample.width, sample.height))


def _opaque(path: Path) -> UserError:
    hint = "cut it out in a painting program and save it as PNG, or use mask_dir"
    return UserError("has no transparency to take as its mask", file=path, hint=hint)


def _check_shape(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """UserError unless the sides are in the picture's proportion, within two pixels."""
    if abs(size[0] * wanted[1] - size[1] * wanted[0]) > 2 * max(*size, *wanted):
        text = f"is {size[0]} x {size[1]}, its picture {wanted[0]} x {wanted[1]}"
        raise UserError(text, file=path, hint="save the mask in the picture's own size")


def raise_first(faults: Sequence[UserError]) -> None:
    """Raises the first of them, and how many more there are."""
    more = UserError(f"and {len(faults) - MOST} pictures more") if len(faults) > MOST else None
    raise_all([*faults[:MOST], *filter(None, [more])])


def _byfolded(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, folded; of several alike the first by `SUFFIXES`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    paths.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()), reverse=True)
    return {folded(PurePosixPath(path.relative_to(folder).as_posix()).with_suffix("")): path for path in paths}


def folded(stem: PurePosixPath) -> str:
    """The same for names that a disk may take for one."""
    return unicodedata.normalize("NFC", str(stem)).casefold()


def read_mask(path: Path, size: tuple[int, int], digest: str = "") -> Image.Image:
    """A mask picture as grey; UserError unless its sides are in the picture's proportion (within two pixels), and its
    bytes still have the digest, if there is one."""
    mask = load_rgb(path, digest).convert("L")
    _check_shape(path, mask.size, size)
    return mask


def alpha_mask(path: Path, digest: str = "") -> Image.Image:
    """The transparency of a picture as its mask; UserError if it has none, is invisible, or has another digest."""
    mask = load_alpha(path, digest)
    if mask is None:
        raise _opaque(path)
    return mask


def view_mask(mask: Image.Image, view: View, factor: int, background: float) -> Tensor:
    """[1, h / factor, w / factor] float32: the mean of each latent's pixels, from `background` (black) to 1 (white).

    The same scaling, crop and mirror as the picture's (`data.image.apply_view`).
    """
    import torch

    width, height = view.bucket
    scaled = mask.resize(view.scaled, Image.Resampling.BILINEAR) if mask.size != view.scaled else mask
    pixels = np.asarray(scaled, dtype=np.float32)[view.top : view.top + height, view.left : view.left + width] / 255
    if view.flip:
        pixels = pixels[:, ::-1]
    cells = pixels.reshape(height // factor, factor, width // factor, factor).mean((1, 3))
    return torch.from_numpy(background + (1 - background) * cells)[None].contiguous()
