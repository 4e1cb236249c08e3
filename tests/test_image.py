"""Decoding against pixels drawn by hand, and views against NumPy slices."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw

from lora_scripts.data import image as data_image
from lora_scripts.data.buckets import View, bucket_sizes, choose_bucket, views
from lora_scripts.data.image import apply_view, load_rgb, load_rgba, on_white
from lora_scripts.errors import UserError


def quarters(width: int = 48, height: int = 32) -> Image.Image:
    """Red, green / blue, white."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), fill=(255, 0, 0))
    draw.rectangle((width // 2, 0, width, height // 2 - 1), fill=(0, 255, 0))
    draw.rectangle((0, height // 2, width // 2 - 1, height), fill=(0, 0, 255))
    return image


def pixels(path: Path) -> np.ndarray:
    image = load_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# How the stored rows lie for each EXIF orientation (EXIF 2.32, 4.6.4 A), so that turning them back gives the picture.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "heic"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    """In HEIC a box of its own turns the picture, which EXIF then says once more."""
    pillow_heif.register_heif_opener()
    drawn = np.asarray(quarters())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](drawn)))
    boxed: dict[str, object] = {"subsampling": "4:4:4"} if suffix == "avif" else {"chroma": 444}
    whole = boxed if suffix in ("avif", "heic") else {"lossless": True, "subsampling": 0}
    stored.save(path, exif=exif.tobytes(), quality=95, **whole)  # type: ignore[arg-type]
    assert suffix != "heic" or orientation == 1 or b"irot" in path.read_bytes() or b"imir" in path.read_bytes()
    upright = pixels(path)
    assert upright.shape == drawn.shape
    for y, x in ((8, 12), (8, 36), (24, 12), (24, 36)):
        assert np.abs(upright[y, x] - drawn[y, x]).max() <= 4


def test_a_picture_of_a_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC. Cut off, unfinished, and without the package it is told as that."""
    drawn, path = quarters(), tmp_path / "IMG_1.HEIC"
    pillow_heif.from_pillow(drawn).save(path, quality=95, chroma=444)
    for y, x in ((8, 12), (8, 36), (24, 12), (24, 36)):
        assert np.abs(pixels(path)[y, x] - np.asarray(drawn)[y, x]).max() <= 4
    noise, whole = Image.effect_noise((96, 96), 60).convert("RGB"), io.BytesIO()
    pillow_heif.from_pillow(noise).save(whole)
    data = whole.getvalue()
    for spoilt, words in (
        (data[: len(data) // 2], "damaged image: "),
        (data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "a download that was not finished"),
    ):
        path.write_bytes(spoilt)
        with pytest.raises(UserError, match=words):
            load_rgb(path)
    monkeypatch.setattr(data_image, "_reads_heic", lambda: False)
    with pytest.raises(UserError, match=r"needs the package pillow-heif; pip install pillow-heif, or convert it"):
        load_rgb(path)


def test_a_rotated_image_keeps_its_transparency(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("P", (20, 10))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (10, 0, 20, 10))
    image.save(tmp_path / "a.png", exif=exif, transparency=0)
    assert pixels(tmp_path / "a.png")[[5, 15], 5].tolist() == [[255] * 3, [0, 255, 0]]


def test_damaged_exif_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    quarters().save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert (pixels(path) == np.asarray(quarters())).all()


def test_16_bit_grey(tmp_path: Path) -> None:
    values = np.array([0, 128, 129, 257, 32768, 65406, 65535] + [1000] * 9, np.uint16).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.round(values / 257).astype(int)
    assert (pixels(tmp_path / "a.png") == expected[..., None]).all()
    assert expected.max() == 255 and len(np.unique(expected)) == 6


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">2H", 1000, 40000) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", 1000)) + chunk(b"IDAT", zlib.compress(rows))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b""))
    assert pixels(tmp_path / "a.png")[:, :, 0].tolist() == [[255, round(40000 / 257)]] * 2


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.array([[0.0, 0.25], [0.5, 1.0]], np.float32), 1.0),
        (np.array([[0.0, 64.0], [128.0, 255.0]], np.float32), 255.0),
        (np.array([[0.0, 300.0], [-5.0, 65535.0]], np.float32), 65535.0),
        (np.array([[0, 300], [30000, 65535]], np.int32), 65535.0),
        (np.array([[0, 300], [2**30, 2**31 - 1]], np.int32), 2.0**31 - 1),
    ],
)
def test_float_and_32_bit_grey(tmp_path: Path, values: np.ndarray, white: float) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert (pixels(tmp_path / "a.tif")[:, :, 2] == np.round(values.clip(0) / white * 255)).all()


def test_float_without_meaning_is_refused(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, 1e20):
        Image.fromarray(np.array([[0.0, value]], np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"a\.tif: holds values"):
            load_rgb(tmp_path / "a.tif")


def test_cmyk(tmp_path: Path) -> None:
    white, cyan, yellow, black = (0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)
    inks = {white: (255, 255, 255), cyan: (0, 255, 255), yellow: (255, 255, 0), black: (0, 0, 0)}
    for ink, colour in inks.items():
        Image.new("CMYK", (16, 16), ink).save(tmp_path / "a.jpg", quality=100)
        assert np.abs(pixels(tmp_path / "a.jpg") - colour).max() <= 2


def test_colour_under_alpha_never_shows(tmp_path: Path) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8] = (255, 0, 0, 0)  # hidden red
    rgba[:, 8:12] = (0, 0, 255, 255)
    rgba[:, 12:] = (0, 0, 0, 51)  # a fifth of black over white is 204
    for suffix in ("png", "webp"):
        Image.fromarray(rgba).save(tmp_path / f"a.{suffix}", lossless=True, exact=True)
        shown = pixels(tmp_path / f"a.{suffix}")
        assert (shown[:, :8] == 255).all()
        assert (shown[:, 8:12] == (0, 0, 255)).all()
        assert (shown[:, 12:] == 204).all()


def test_grey_alpha_and_colour_key(tmp_path: Path) -> None:
    la = np.zeros((16, 16, 2), np.uint8)
    la[:8] = (10, 0)
    la[8:] = (10, 255)
    Image.fromarray(la, "LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[[0, 8], 0, 1].tolist() == [255, 10]
    quarters().save(tmp_path / "key.png", transparency=(0, 255, 0))
    shown = pixels(tmp_path / "key.png")
    assert shown[8, 36].tolist() == [255, 255, 255] and shown[8, 12].tolist() == [255, 0, 0]
    grey = Image.new("L", (16, 16), 7)
    grey.putpixel((3, 0), 9)
    grey.save(tmp_path / "l.png", transparency=7)
    shown = pixels(tmp_path / "l.png")
    assert shown[0, 3].tolist() == [9, 9, 9] and (shown == 255).sum() == 3 * (16 * 16 - 1)
    Image.new("L", (16, 16), 7).save(tmp_path / "nothing.png", transparency=7)
    with pytest.raises(UserError, match="wholly transparent"):
        pixels(tmp_path / "nothing.png")


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (30, 16))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.paste(1, (10, 0, 20, 16))
    image.paste(2, (20, 0, 30, 16))
    image.save(tmp_path / "plain.png")
    assert pixels(tmp_path / "plain.png")[0, [5, 15, 25]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    image.save(tmp_path / "clear.png", transparency=bytes([0, 255, 51]))
    assert pixels(tmp_path / "clear.png")[0, [5, 15, 25]].tolist() == [[255] * 3, [0, 255, 0], [204, 204, 255]]
    image.save(tmp_path / "one.png", transparency=1)
    assert pixels(tmp_path / "one.png")[0, [5, 15, 25]].tolist() == [[255, 0, 0], [255] * 3, [0, 0, 255]]


def test_transparency_stays_for_a_vae_that_has_it(tmp_path: Path) -> None:
    """Of every kind of file; on white it is the picture without."""
    rgba = np.random.default_rng(1).integers(0, 256, (16, 16, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.array_equal(np.asarray(load_rgba(tmp_path / "rgba.png")), rgba)
    Image.fromarray(rgba[..., 2:]).save(tmp_path / "la.png")
    clear = Image.fromarray(rgba[..., 0] % 3, "P")
    clear.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    clear.save(tmp_path / "palette.png", transparency=bytes([0, 255, 51]))
    quarters().save(tmp_path / "key.png", transparency=(0, 255, 0))
    turned = Image.Exif()
    turned[0x0112] = 6
    quarters().save(tmp_path / "none.jpg", exif=turned)
    for name in ("rgba.png", "la.png", "palette.png", "key.png", "none.jpg"):
        image = load_rgba(tmp_path / name)
        assert image.mode == "RGBA" and np.array_equal(np.asarray(on_white(image)), pixels(tmp_path / name)), name
        assert (image.getchannel("A").getextrema() == (255, 255)) == (name == "none.jpg")
    assert load_rgba(tmp_path / "none.jpg").size == load_rgb(tmp_path / "none.jpg").size == quarters().size[::-1]
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="wholly transparent"):
        load_rgba(tmp_path / "nothing.png")


def test_a_camera_s_multi_picture_jpeg_gives_its_first(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))], quality=95)
    assert np.abs(pixels(tmp_path / "a.jpg")[8, 12] - (255, 0, 0)).max() <= 4


def test_one_bit_and_bmp(tmp_path: Path) -> None:
    quarters().convert("1", dither=Image.Dither.NONE).save(tmp_path / "a.bmp")
    assert set(np.unique(pixels(tmp_path / "a.bmp"))) == {0, 255}
    quarters().save(tmp_path / "b.bmp")
    assert (pixels(tmp_path / "b.bmp") == np.asarray(quarters())).all()


def test_colour_profiles(tmp_path: Path) -> None:
    image = quarters()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("srgb", srgb), ("broken", b"not a profile"), ("cut", srgb[:200])):
        image.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert (pixels(tmp_path / f"{name}.png") == np.asarray(image)).all(), name
    # swap what the profile calls red and green: the picture's red must come out green
    swapped = srgb.replace(b"rXYZ", b"tmp1").replace(b"gXYZ", b"rXYZ").replace(b"tmp1", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test")
    image.save(tmp_path / "swapped.png", icc_profile=swapped)
    assert np.abs(pixels(tmp_path / "swapped.png")[8, 12] - (0, 255, 0)).max() <= 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heic" + b"\1" * 60, "damaged image: its end is missing"),
        (b"GARBAGE" * 50, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_not_an_image(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        load_rgb(tmp_path / "a.jpg")
    assert str(caught.value).startswith(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP"])
def test_damage_is_never_a_traceback(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    noise = Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8))
    noise.save(buffer, kind, exif=b"" if kind == "BMP" else Image.Exif().tobytes())
    data = buffer.getvalue()
    path = tmp_path / "a.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.img"):
        load_rgb(path)
    for _ in range(150):
        mutant = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), 3):
            mutant[place] = rng.integers(0, 256)
        path.write_bytes(mutant)
        try:
            assert load_rgb(path).mode == "RGB"
        except UserError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}, {"save_all": True}])
def test_zeros_at_the_end_of_a_webp_are_told_only_in_its_picture(tmp_path: Path, options: dict[str, object]) -> None:
    """A camera's EXIF may end in zeros, behind a whole picture."""
    noise = Image.effect_noise((96, 96), 60).convert("RGB")
    path, more = tmp_path / "a.webp", {"append_images": [noise.rotate(90)]} if "save_all" in options else {}
    noise.save(path, exif=Image.Exif().tobytes() + bytes(201), **options, **more)  # type: ignore[arg-type]
    data = path.read_bytes()
    assert data[12:16] == b"VP8X" and data.endswith(bytes(200)) and load_rgb(path).size == noise.size
    for whole in (data, encoded_webp(noise, options)):
        path.write_bytes(whole[: len(whole) // 4] + bytes(len(whole) - len(whole) // 4))
        with pytest.raises(UserError, match=r"bytes are zeros: a download that was not finished"):
            load_rgb(path)


@pytest.mark.parametrize("quality", [5, 100])
def test_a_plain_background_at_the_foot_of_a_webp_is_whole(tmp_path: Path, quality: int) -> None:
    """Encoders write hundreds of zeros for it."""
    image = Image.new("RGB", (512, 512), "#4080c0")
    grain = np.random.default_rng(0).normal(128, 40, (256, 512)).clip(0, 255)
    image.paste(Image.fromarray(grain.astype(np.uint8)).convert("RGB"))
    image.save(tmp_path / "a.webp", method=0, quality=quality)
    assert (tmp_path / "a.webp").read_bytes().endswith(bytes(64)) and load_rgb(tmp_path / "a.webp").size == (512, 512)


def encoded_webp(image: Image.Image, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarters().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 32 - 1)
    with pytest.raises(UserError, match=r"a\.png: 48 x 32 px is more"):
        load_rgb(tmp_path / "a.png")


def test_apply_view_is_a_slice() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (100, 150, 3), np.uint8)
    for flip in (False, True):
        tensor = apply_view(Image.fromarray(source), View((64, 48), (150, 100), left=37, top=11, flip=flip))
        crop = source[11:59, 37:101]
        expected = (crop[:, ::-1] if flip else crop).transpose(2, 0, 1) / 127.5 - 1
        assert tensor.dtype == torch.float32 and tensor.shape == (3, 48, 64)
        assert np.abs(tensor.numpy() - expected).max() < 1e-6
    green = apply_view(Image.new("RGB", (64, 64), (0, 255, 0)), View((64, 64), (64, 64), 0, 0, False))
    assert green[:, 0, 0].tolist() == [-1, 1, -1]


def test_what_is_transparent_gives_no_colour_to_what_is_beside_it() -> None:
    """Reduced or not, what is wholly transparent is white."""
    rgba = np.zeros((60, 60, 4), np.uint8)
    rgba[:, :25] = (0, 0, 255, 0)  # hidden blue
    rgba[:, 25:] = (255, 0, 0, 255)
    for side in (60, 32):
        view = apply_view(Image.fromarray(rgba), View((32, 32), (side, side), 0, 0, False))
        shown = np.rint((view.numpy().transpose(1, 2, 0) + 1) * 127.5)
        assert view.shape == (4, 32, 32) and set(shown[..., 3].ravel().tolist()) >= {0.0, 255.0}
        seen = shown[..., 3] > 0
        assert (np.abs(shown[seen][:, :3] - (255, 0, 0)) <= 8).all() and (shown[~seen][:, :3] == 255).all()


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    tensor = apply_view(Image.fromarray(stripes), View((64, 64), (64, 64), 0, 0, False))
    assert tensor[:, 8:-8, 8:-8].abs().max() < 0.05  # even grey; nearest neighbour would give -1 or 1


@pytest.mark.parametrize("size", [(400, 300), (300, 700), (1000, 430), (130, 128)])
def test_a_circle_stays_a_circle(size: tuple[int, int]) -> None:
    """Measured on the pixels: the second moments of a disc are equal in x and y, and zero across."""
    image = Image.new("RGB", size, "black")
    radius, centre = min(size) * 0.3, (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).ellipse(
        (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius), "white"
    )
    bucket = choose_bucket(size, bucket_sizes((256, 256)))
    for view in views(size, bucket, flip=True, random_crop=True, seed=3, index=0):
        mass = (apply_view(image, view)[0].double().numpy() + 1) / 2
        assert mass[[0, -1]].max() == mass[:, [0, -1]].max() == 0, "the disc is inside"
        y, x = np.mgrid[: mass.shape[0], : mass.shape[1]]
        total = mass.sum()
        dx, dy = x - (x * mass).sum() / total, y - (y * mass).sum() / total
        across, down, mixed = ((a * b * mass).sum() / total for a, b in ((dx, dx), (dy, dy), (dx, dy)))
        assert abs(np.sqrt(across / down) - 1) < 0.01
        assert abs(mixed) / across < 0.01


def test_what_is_wholly_transparent_is_told(tmp_path: Path) -> None:
    """It would be trained as a white picture."""
    image = quarters().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: is wholly transparent: there is nothing to see; remove it"):
        load_rgb(tmp_path / "a.png")
    image.putpixel((3, 3), (255, 0, 0, 1))
    image.save(tmp_path / "a.png")
    assert load_rgb(tmp_path / "a.png").size == image.size
