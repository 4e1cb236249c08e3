"""What is measured of one picture, in a worker process: all that findings need, so that pixels are read once."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_scripts.check import integrity, overlays, sharpness, surface
from lora_scripts.check.align import GRID
from lora_scripts.check.overlays import Overlay
from lora_scripts.check.sharpness import Sharpness
from lora_scripts.check.surface import Border
from lora_scripts.data.image import boxed, decode_rgb
from lora_scripts.errors import UserError
from lora_scripts.utf8 import read_bytes

THUMBNAIL = 256
"""Longest side of the thumbnails, in pixels."""
_SMALL = 512
"""Borders, overlays and thumbnails are looked at in a copy of at most this size: square root of width x height."""
_MAGIC = ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WEBP"), (b"BM", "BMP"), (b"GIF8", "GIF"))


@dataclass(frozen=True)
class PictureFacts:
    """One file; with a `problem`, the measures are empty."""

    name: str
    sha256: str
    """Of the file, 64 hex digits; "" if it cannot be read."""
    length: int
    """Of the file, in bytes."""
    format: str
    """JPEG, PNG … by the first bytes; "" if unknown."""
    problem: str | None = None
    """What is corrupt or cut off."""
    mend: str = ""
    """For `problem`."""
    size: tuple[int, int] = (0, 0)
    """(width, height) in pixels, after EXIF rotation."""
    pixels: str = ""
    """Digest of the decoded picture: the same for lossless copies in any format."""
    thumbnail: bytes = b""
    """JPEG."""
    grid: bytes = b""
    """The picture squeezed into GRID x GRID pixels, RGB: for comparing."""
    sharp: Sharpness = field(default_factory=Sharpness)
    quality: int | None = None
    """That a JPEG was saved with, by its tables, 1 … 100."""
    blocking: float = 0.0
    """Steps at the 8 x 8 blocks of a JPEG, in grey values: see `surface.blocking`."""
    border: Border | None = None
    texts: tuple[Overlay, ...] = ()
    """What looks like text or a watermark."""

    @property
    def readable(self) -> bool:
        """Whether there are pixels to speak of; damaged files may still show a part."""
        return bool(self.grid)

    def colours(self) -> NDArray[np.uint8]:
        """`grid` as [GRID, GRID, 3]."""
        return np.frombuffer(self.grid, np.uint8).reshape(GRID, GRID, 3)


def measure(name: str, path: Path) -> PictureFacts:
    """Reads and decodes the file once. Raises nothing for a bad file: that is a `problem`."""
    try:
        data = read_bytes(path)
    except UserError as fault:
        return PictureFacts(name, "", 0, "", fault.message, fault.hint or "")
    kind = boxed(data) or next((kind for magic, kind in _MAGIC if data.startswith(magic)), "")
    facts = PictureFacts(name, hashlib.sha256(data).hexdigest(), len(data), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files
        try:
            image = decode_rgb(data, path)
        except UserError as fault:
            return replace(facts, problem=fault.message, mend=fault.hint or "remove it, or copy it again")
    facts = replace(
        facts,
        size=image.size,
        quality=surface.jpeg_quality(data) if kind == "JPEG" else None,
        pixels=hashlib.blake2b(image.tobytes(), key=repr(image.size).encode(), digest_size=16).hexdigest(),
    )
    if damaged := integrity.damage(data):
        facts = replace(facts, problem=damaged, mend="copy or download it again")
    return _look(facts, image)


def _look(facts: PictureFacts, image: Image.Image) -> PictureFacts:
    width, height = image.size
    factor = math.sqrt(width * height) / _SMALL
    small = image
    if factor > 1:
        size = max(1, round(width / factor)), max(1, round(height / factor))
        small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0)
    border = surface.border(np.asarray(small))
    grey, small_grey = image.convert("L"), small.convert("L")
    if border is not None:
        grey, small_grey = grey.crop(border.content(grey.size, 4)), small_grey.crop(border.content(small.size, 2))
    return replace(
        facts,
        thumbnail=_thumbnail(small),
        grid=small.resize((GRID, GRID), Image.Resampling.BOX).tobytes(),
        sharp=sharpness.measure(grey),
        blocking=surface.blocking(np.asarray(grey)),
        border=border,
        texts=overlays.find(np.asarray(small_grey)) if border is None else (),
    )


def _thumbnail(small: Image.Image) -> bytes:
    copy, buffer = small.copy(), io.BytesIO()
    copy.thumbnail((THUMBNAIL, THUMBNAIL))
    copy.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
