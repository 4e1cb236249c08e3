"""Defects planted into clean pictures, and photographs as material where a folder of them is given."""

from __future__ import annotations

import io
import math
from pathlib import Path

import material
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy.signal import fftconvolve

Rng = np.random.Generator
QUALITIES = (60, 70, 75, 80, 85, 90, 95)
_KERNELS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def photographs(folder: Path | None) -> list[Path]:
    """The pictures below `folder`, in order."""
    found = [] if folder is None else folder.rglob("*")
    return sorted(p for p in found if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif"))


def synthetic(rng: Rng, *, tuning: bool) -> tuple[str, Image.Image]:
    """A picture of a random kind, 512 to 1024 px wide."""
    kinds = material.TUNING if tuning else material.HELD_OUT
    kind = str(rng.choice(list(kinds)))
    return kind, material.picture(kinds[kind], rng, int(rng.choice([512, 640, 768, 1024], p=[0.4, 0.3, 0.2, 0.1])))


def photograph(path: Path, rng: Rng) -> Image.Image | None:
    """A part of a photograph, reduced by a third or more, so that it is surely sharp; None if it is too small."""
    image = Image.open(path).convert("RGB")
    width = int(image.width * rng.uniform(0.7, 1))
    height = min(image.height, int(width * rng.choice([1, 0.75])))
    left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
    sizes = [s for s in (448, 512, 640, 768, 1024) if s * 1.3 <= width]
    if not sizes or height < width / 2:
        return None
    size = int(rng.choice(sizes))
    part = image.crop((left, top, left + width, top + height))
    return part.resize((size, round(size * height / width)), Image.Resampling.LANCZOS)


def encoded(image: Image.Image, rng: Rng, kinds: tuple[str, ...] = ("JPEG", "JPEG", "JPEG", "PNG")) -> bytes:
    """The picture as a file: mostly JPEG with quality 60 to 95, with and without subsampled colour."""
    out, kind = io.BytesIO(), str(rng.choice(kinds))
    if kind == "JPEG":
        image.save(out, kind, quality=int(rng.choice(QUALITIES)), subsampling=int(rng.choice([0, 2])))
    else:
        image.save(out, kind, compress_level=1) if kind == "PNG" else image.save(out, kind)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def blurred(image: Image.Image, sigma: float, rng: Rng) -> Image.Image:
    """Out of focus by a Gaussian, or by a disc of the same deviation, of `sigma` px where the picture is 512 px."""
    sigma = float(sigma * math.sqrt(image.width * image.height) / 512)
    if rng.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(sigma))
    reach = math.ceil(2 * sigma)  # a disc of radius r has the deviation r / 2 along an axis
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(2 * sigma + 0.5 - np.hypot(x, y), 0, 1)
    padded = np.pad(np.asarray(image, np.float32), ((reach, reach), (reach, reach), (0, 0)), "reflect")
    planes = [fftconvolve(padded[..., c], disc / disc.sum(), "valid") for c in range(3)]
    return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8))


def enlarged(image: Image.Image, factor: float, rng: Rng) -> Image.Image:
    """As large as before, from a version `factor` times smaller, which was a JPEG half of the time."""
    size = (round(image.width / factor), round(image.height / factor))
    small = image.resize(size, rng.choice([Image.Resampling.BOX, Image.Resampling.LANCZOS, Image.Resampling.BICUBIC]))
    if rng.random() < 0.5:
        small = opened(encoded(small, rng))
    return small.resize(image.size, _KERNELS[int(rng.integers(3))])


def near_copy(image: Image.Image, rng: Rng) -> Image.Image:
    """Cropped by up to 5 % a side, resized, brighter or darker by up to 12 %; each at random."""
    if rng.random() < 0.7:
        cut = rng.uniform(0, 0.05, 4) if rng.random() < 0.7 else rng.choice([0, 0.05], 4)
        width, height = image.size
        box = cut[0] * width, cut[1] * height, width - cut[2] * width, height - cut[3] * height
        image = image.crop(tuple(round(edge) for edge in box))
    if rng.random() < 0.7:
        factor = rng.uniform(0.5, 1.3)
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.88, 1.12)))
    return image


def broken(data: bytes, rng: Rng) -> tuple[str, bytes]:
    """A file that was cut off, lost a block of 4096 bytes, or is something else by now."""
    how = str(rng.choice(["cut off", "block of zeros", "block of noise", "head lost", "a web page", "empty"]))
    at = int(rng.integers(len(data) // 20, max(len(data) // 20 + 1, len(data) - 4096)))
    size = min(4096, len(data) - at - 2)
    if how == "cut off":
        return how, data[: int(len(data) * rng.uniform(0.05, 0.99))]
    if how == "block of zeros":
        return how, data[:at] + bytes(size) + data[at + size :]
    if how == "block of noise":
        return how, data[:at] + rng.bytes(size) + data[at + size :]
    if how == "head lost":
        return how, bytes(512) + data[512:]
    return how, b"<!DOCTYPE html><html><body>404</body></html>" if how == "a web page" else b""
