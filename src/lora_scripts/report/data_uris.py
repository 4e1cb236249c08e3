"""Pictures as addresses that hold them whole, so that a page needs no file beside it."""

from __future__ import annotations

import base64
import io

from PIL.Image import Image, Resampling

MOST_SIDE = 640
"""Pixels of a reduced picture's longer side, at most."""
LOSSLESS = 256
"""Up to this side a picture is kept bit for bit."""
_MAGIC = {b"\xff\xd8": "jpeg", b"\x89P": "png"}


def data_uri(image: Image) -> str:
    """The picture itself as an address: PNG or lossless WebP, whichever is smaller; the same pixels either way."""
    plain = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    coded = []
    for kind, options in (("png", {}), ("webp", {"lossless": True, "exact": True, "method": 3})):
        buffer = io.BytesIO()
        plain.save(buffer, kind, **options)
        coded.append((buffer.tell(), kind, buffer.getvalue()))
    _, kind, content = min(coded)
    return _uri(kind, content)


def reduced_uri(image: Image) -> str:
    """A picture to look at: bit for bit up to `LOSSLESS` pixels, else at most `MOST_SIDE` and compressed."""
    if max(image.size) <= LOSSLESS:
        return data_uri(image)
    factor = min(1.0, MOST_SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    small = image if factor == 1 else image.resize(size, Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=90, method=4)
    return _uri("webp", buffer.getvalue())


def file_uri(content: bytes) -> str:
    """The bytes of a JPEG, PNG or WebP file as they are."""
    return _uri(_MAGIC.get(content[:2], "webp"), content)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
