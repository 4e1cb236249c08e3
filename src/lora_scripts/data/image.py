"""From an image file to upright 8-bit RGB, and from that to the tensor of one view.

What a viewer shows is what is trained: EXIF orientation is applied, transparency lies on white (so that colour hidden
under it never shows) or, for a VAE that has transparency, stays; 16-bit and float values are scaled instead of clipped,
and an embedded colour profile other than sRGB is converted to sRGB. Animations give their first frame.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError, features

from lora_scripts.data.buckets import View
from lora_scripts.data.captions import tidy
from lora_scripts.data.findings import HEIC_MEND, READS_HEIC
from lora_scripts.errors import UserError
from lora_scripts.utf8 import read_bytes

if TYPE_CHECKING:
    import torch

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "GIF")  # no decoder that starts another program
DECODER_ERRORS = (  # what Pillow's decoders let through when a file is damaged
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_ZEROS = 64
"""Bytes at the end of a compressed picture that no encoder writes as zeros."""
_SECTOR = 512
"""And what a download leaves of an AVIF or HEIC: whole sectors of a disk."""
_PLAIN = 14
"""But of a plain block in a lossy WebP: at most 13.7 were seen, beside noise, at the least qualities of libwebp."""


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) as shown, from the head of the file. UserError for what is no picture."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except DECODER_ERRORS:
        return load_rgb(path).size  # which tells what is wrong


def load_rgb(path: Path, digest: str = "") -> Image.Image:
    """The image at `path`, upright, mode RGB. Raises UserError, which names the file, for whatever is wrong with it.

    `digest`: as `read_same`; without one, whatever lies there.
    """
    return _load(path, digest, _to_rgb)


def load_rgba(path: Path, digest: str = "") -> Image.Image:
    """As `load_rgb`, mode RGBA: with its transparency, opaque where it has none."""
    return _load(path, digest, _to_rgba)


def _load(path: Path, digest: str, convert: Callable[[Image.Image, Path], Image.Image]) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files, for example on EXIF that does not matter
        return _decode(read_same(path, digest) if digest else read_bytes(path), path, convert)


def on_white(image: Image.Image) -> Image.Image:
    """A picture that was drawn, mode RGB, as a viewer shows it on white paper."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def read_same(path: Path, digest: str) -> bytes:
    """The bytes of a file that was looked at before; UserError unless their SHA-256 (64 hex digits) is still `digest`.

    What is kept under a digest, or held against it on resuming, must be of these bytes and no others.
    """
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError("has changed since this start looked at it", file=path, hint="start again")
    return data


def decode_rgb(data: bytes, path: Path) -> Image.Image:
    """As `load_rgb`, from bytes at hand; `path` is only for the error."""
    return _decode(data, path, _to_rgb)


def _decode(data: bytes, path: Path, convert: Callable[[Image.Image, Path], Image.Image]) -> Image.Image:
    if not data:
        raise UserError("the file is empty (0 bytes)", file=path, hint="copy or download it again")
    other = _other_kind(data) or _unfinished(data)
    if other is not None:
        raise UserError(other[0], file=path, hint=other[1])
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise UserError(
                    f"{image.width} x {image.height} px is more than the {limit // 10**6} million pixels that are read",
                    file=path,
                    hint="scale it down",
                )
            image.load()
            return convert(_upright(image), path)
    except Image.DecompressionBombError:
        raise UserError("has more pixels than are read", file=path, hint="scale it down") from None
    except UnidentifiedImageError:
        text = "is not an image, or is damaged from its first bytes on"
        text = "damaged image: its end is missing, or what it says of itself is wrong" if boxed(data) else text
        raise UserError(text, file=path, hint="copy or download it again, or remove it") from None
    except DECODER_ERRORS as error:
        reason = tidy(str(error)) or type(error).__name__
        raise UserError(f"damaged image: {reason}", file=path, hint="copy or download it again") from None


def load_alpha(path: Path, digest: str = "") -> Image.Image | None:
    """The transparency of the image at `path`, upright, mode L, white where it is opaque; None if it has none.

    `digest` and UserErrors: as `load_rgb`.
    """
    load_rgb(path)  # tells every fault
    data = read_same(path, digest) if digest else read_bytes(path)
    with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
        upright = _upright(image)
        return upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None


def apply_view(image: Image.Image, view: View) -> torch.Tensor:
    """The pixels of `view` of an RGB image, float32 [3, height, width] in [-1, 1], or of an RGBA one, [4, …].

    Lanczos resampling with a support that widens when shrinking, so that nothing aliases; what is transparent gives no
    colour to what is beside it (Pillow resamples RGBA so), and is white where it is wholly transparent.
    """
    import torch

    width, height = view.bucket
    scaled = image.resize(view.scaled, Image.Resampling.LANCZOS) if image.size != view.scaled else image
    pixels = np.asarray(scaled)[view.top : view.top + height, view.left : view.left + width]  # [h, w, 3 or 4]
    if image.mode == "RGBA":
        pixels = np.where(pixels[..., 3:] == 0, np.array((255, 255, 255, 0), np.uint8), pixels)
    if view.flip:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0)


def _other_kind(data: bytes) -> tuple[str, str] | None:
    """What a file really is that people often have in place of an image, and the mend."""
    head = data[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the image itself", "run: git lfs pull"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page saved under the name of an image", "download the image itself"
    kind = boxed(data)
    if kind == "AVIF" and not features.check("avif"):
        mend = "pip install -U pillow, or convert it to JPEG or PNG"
        return "is an AVIF image, which this Pillow does not read", mend
    if kind == "HEIC" and not _reads_heic():
        return "is a HEIC image, which needs the package pillow-heif", HEIC_MEND
    return None


def boxed(data: bytes) -> str:
    """AVIF or HEIC, where the first box of a file says so by its brands (ISO/IEC 14496-12, section 4.3), or nothing."""
    if data[4:8] != b"ftyp":
        return ""
    brands = {data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4]), 256), 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if brands & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"} else ""


def _formats(data: bytes) -> tuple[str, ...]:
    """Which of Pillow's a picture may be of."""
    return (*FORMATS, "HEIF") if boxed(data) == "HEIC" and _reads_heic() else FORMATS


@cache
def _reads_heic() -> bool:
    """Whether it can be read; from then on Pillow does."""
    if not READS_HEIC:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return True


def _unfinished(data: bytes) -> tuple[str, str] | None:
    """A download into a file of the right size that did not end: zeros where compressed data should be. Decoders take
    them for a picture whose rest is grey or smeared."""
    there = data.rstrip(b"\0")
    zeros = len(data) - len(there)
    if zeros < _ZEROS:
        return None
    if data.startswith(b"\x89PNG"):
        whole = there.endswith(b"IEND\xaeB`\x82")
    elif data.startswith(b"\xff\xd8"):  # cameras may pad a whole one
        whole = there.endswith(b"\xff\xd9")
    elif boxed(data):
        whole = zeros < _SECTOR  # EXIF may lie behind the picture
    else:
        end, most = _end_in_webp(data) if data[8:12] == b"WEBP" else (0, 0)
        whole = end - len(there) <= most
    return (
        None
        if whole
        else (f"its last {zeros:,} bytes are zeros: a download that was not finished", "download it again")
    )


def _end_in_webp(data: bytes) -> tuple[int, int]:
    """Where the compressed picture of a WebP ends, the first of an animation (behind it there may be EXIF with zeros),
    and how many zeros may stand there; (0, 0) where there is none.

    RFC 9649, section 2: chunks, each with four letters and its size. RFC 6386, sections 9.1 and 13: a block of 16 x 16
    px that is like the one before it takes up to 25 decisions, which may all be 0, so a plain background at the foot
    may end in many zeros: `_PLAIN` bytes a block.
    """
    at = 12
    while (kind := data[at : at + 4]).strip(b"\0"):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"VP8L":
            return end, _ZEROS
        if kind == b"VP8 ":
            width, height = (int.from_bytes(data[place : place + 2], "little") & 0x3FFF for place in (at + 14, at + 16))
            return end, max(_ZEROS, width * height // 256 * _PLAIN)
        at = at + 24 if kind == b"ANMF" else end + end % 2
    return 0, 0


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except DECODER_ERRORS:
        return image  # viewers, too, show an image with damaged EXIF as it is stored
    # EXIF may hold anything under this number, also what cannot be looked up in a table
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image, path)
    if image.has_transparency_data:
        return on_white(_to_rgba(image, path))
    flat = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
    return _to_srgb(flat, image.info.get("icc_profile"))


def _to_rgba(image: Image.Image, path: Path) -> Image.Image:
    """The one grey of 16 bits that a PNG may name as transparent is white and opaque."""
    if image.mode.startswith("I") or image.mode == "F" or not image.has_transparency_data:
        return _to_rgb(image, path).convert("RGBA")
    colour = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    alpha = colour.getchannel("A")
    if alpha.getextrema() == (0, 0):
        raise UserError("is wholly transparent: there is nothing to see", file=path, hint="remove it")
    opaque = _to_srgb(colour.convert("RGB"), image.info.get("icc_profile"))
    opaque.putalpha(alpha)
    return opaque


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` (RGB, L or CMYK) in sRGB by its embedded profile; as it stands if there is none, or an unusable one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if not (image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower()):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, *DECODER_ERRORS):
            pass  # a profile of another colour space, or a damaged one: viewers ignore it too
    return image.convert("RGB")


def _deep_grey(image: Image.Image, path: Path) -> Image.Image:
    """16-bit, 32-bit and float grey, scaled to 8 bits where Pillow's own conversion clips (16-bit grey turns white).

    "I;16" is 0 ... 65535. The other modes do not say their white: it is the smallest of 1 (float only), 255 (float
    only), 65535 and 2^31 - 1 that no value exceeds.
    """
    values = np.asarray(image).astype(np.float64)  # [h, w]
    if not np.isfinite(values).all():
        raise UserError("holds values that are not numbers (NaN or infinity)", file=path)
    whites = [65535.0] if image.mode.startswith("I;16") else [65535.0, 2.0**31 - 1]
    if image.mode == "F":
        whites = [1.0, 255.0, *whites]
    top = values.max()
    white = next((w for w in whites if top <= w), None)
    if white is None:
        raise UserError(f"holds values up to {top:g}, whose white is unknown", file=path, hint="save it with 8 bits")
    grey = np.rint(values.clip(0, white) * (255.0 / white)).astype(np.uint8)
    transparent = image.info.get("transparency")  # PNG: the one grey value that is transparent
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
