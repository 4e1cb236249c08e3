"""Masks: which parts of a picture count in training. White counts, black does not."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_scripts.data.buckets import View
from lora_scripts.data.findings import IMAGE_SUFFIXES
from lora_scripts.data.image import load_alpha, load_rgb
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError, raise_all

SUFFIXES = tuple(sorted(IMAGE_SUFFIXES, key=lambda suffix: suffix != ".png"))
"""Of masks, the likeliest first."""


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
            others = _by_folded(folder) if others is None else others
            path = others.get(_folded(stem))
        if path is None:
            hint = f"add {near[0]}, white where the picture counts"
            faults.append(UserError("has no mask", file=sample.path, hint=hint))
        else:
            found[sample.name] = path
    raise_all(faults[:10])
    return found


def _by_folded(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, folded; of several alike the first by `SUFFIXES`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    paths.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()), reverse=True)
    return {_folded(PurePosixPath(path.relative_to(folder).as_posix()).with_suffix("")): path for path in paths}


def _folded(stem: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(stem)).casefold()


def read_mask(path: Path, size: tuple[int, int], digest: str = "") -> Image.Image:
    """A mask picture as grey; UserError unless its sides are in the picture's proportion (within two pixels), and its
    bytes still have the digest, if there is one."""
    mask = load_rgb(path, digest).convert("L")
    if abs(mask.width * size[1] - mask.height * size[0]) > 2 * max(*mask.size, *size):
        text = f"is {mask.width} x {mask.height}, its picture {size[0]} x {size[1]}"
        raise UserError(text, file=path, hint="save the mask in the picture's own size")
    return mask


def alpha_mask(path: Path, digest: str = "") -> Image.Image:
    """The transparency of a picture as its mask; UserError if it has none, is invisible, or has another digest."""
    mask = load_alpha(path, digest)
    if mask is None:
        hint = "cut it out in a painting program and save it as PNG, or use mask_dir"
        raise UserError("has no transparency to take as its mask", file=path, hint=hint)
    return mask


def view_mask(mask: Image.Image, view: View, factor: int, background: float) -> Tensor:
    """[1, h / factor, w / factor] float32: the mean of each latent's pixels, from `background` (black) to 1 (white).

    The same scaling, crop and mirror as the picture's (`data.image.apply_view`).
    """
    width, height = view.bucket
    scaled = mask.resize(view.scaled, Image.Resampling.BILINEAR) if mask.size != view.scaled else mask
    pixels = np.asarray(scaled, dtype=np.float32)[view.top : view.top + height, view.left : view.left + width] / 255
    if view.flip:
        pixels = pixels[:, ::-1]
    cells = pixels.reshape(height // factor, factor, width // factor, factor).mean((1, 3))
    return torch.from_numpy(background + (1 - background) * cells)[None].contiguous()
