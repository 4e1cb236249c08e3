"""More styles of the miniature world, for measurements on what no one tuned for: each paints a scene of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from lora_scripts.demo import world

Ramp = list[tuple[int, int, int]]


def _as(style: str, scene: world.Scene, size: int) -> Image.Image:
    return world.draw(replace(scene, style=style), size)


def _mapped(image: Image.Image, ramp: Ramp) -> Image.Image:
    """Brightness as a colour of the ramp, dark to bright."""
    grey = np.asarray(ImageOps.autocontrast(image.convert("L")), np.float32) / 255 * (len(ramp) - 1)
    stops = np.arange(len(ramp))
    rows = np.stack([np.interp(grey, stops, [colour[i] for colour in ramp]) for i in range(3)], -1)
    return Image.fromarray(rows.round().astype(np.uint8), "RGB")


def _duotone(scene: world.Scene, size: int) -> Image.Image:
    return _mapped(_as("plain", scene, size), [(40, 10, 70), (240, 90, 80), (255, 236, 170)])


def _pixel(scene: world.Scene, size: int) -> Image.Image:
    """Blocks of an eighth of 64 px in few strong colours."""
    small = _as("plain", scene, size).resize((20, 20), Image.Resampling.BOX)
    return ImageOps.posterize(small, 2).resize((size, size), Image.Resampling.NEAREST)


def _blueprint(scene: world.Scene, size: int) -> Image.Image:
    return _mapped(ImageOps.invert(_as("sketch", scene, size)), [(18, 56, 130), (40, 92, 180), (236, 244, 255)])


def _thermal(scene: world.Scene, size: int) -> Image.Image:
    ramp = [(0, 0, 40), (90, 0, 140), (230, 50, 60), (255, 170, 0), (255, 255, 220)]
    return _mapped(_as("plain", scene, size), ramp)


def _wash(scene: world.Scene, size: int) -> Image.Image:
    """Pale and soft, on paper."""
    soft = _as("plain", scene, size).filter(ImageFilter.GaussianBlur(size * 0.02))
    return Image.blend(soft, Image.new("RGB", soft.size, (250, 244, 230)), 0.55)


def _poster(scene: world.Scene, size: int) -> Image.Image:
    """Two inks and black outlines."""
    lines = ImageOps.autocontrast(_as("sketch", scene, size).convert("L")).point(lambda v: 0 if v < 110 else 255)
    flat = _mapped(ImageOps.posterize(_as("plain", scene, size), 2), [(10, 90, 90), (250, 220, 60), (255, 250, 235)])
    return Image.composite(flat, Image.new("RGB", flat.size, (20, 16, 24)), lines)


def _dusk(scene: world.Scene, size: int) -> Image.Image:
    """As through dark red glass, with a vignette."""
    values = np.asarray(_as("plain", scene, size), np.float32)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    shade = (1 - 0.45 * (x**2 + y**2))[..., None]
    return Image.fromarray((values * shade * np.array([0.85, 0.35, 0.4])).clip(0, 255).astype(np.uint8), "RGB")


def _sepia(scene: world.Scene, size: int) -> Image.Image:
    return _mapped(_as("plain", scene, size), [(38, 20, 8), (150, 100, 60), (246, 228, 196)])


def _chalk(scene: world.Scene, size: int) -> Image.Image:
    """White lines on a dark green board."""
    return _mapped(
        ImageOps.invert(_as("sketch", scene, size).convert("L")), [(24, 52, 44), (48, 78, 68), (240, 240, 230)]
    )


def _halftone(scene: world.Scene, size: int) -> Image.Image:
    """Dots of one ink, the larger the darker, over the picture's pale colours."""
    plain = _as("plain", scene, size)
    y, x = np.mgrid[0:size, 0:size] * (2 * np.pi * 32 / size)
    ink = np.asarray(plain.convert("L"), np.float32) / 255 < (np.cos(x) * np.cos(y) + 1) / 2
    pale = Image.blend(plain, Image.new("RGB", plain.size, (255, 250, 240)), 0.6)
    return Image.composite(Image.new("RGB", plain.size, (60, 20, 90)), pale, Image.fromarray(ink))


def _fog(scene: world.Scene, size: int) -> Image.Image:
    """The paler the higher, and soft."""
    soft = np.asarray(_as("plain", scene, size).filter(ImageFilter.GaussianBlur(size * 0.012)), np.float32)
    share = np.linspace(0.8, 0.35, size)[:, None, None]
    return Image.fromarray((soft * (1 - share) + np.array([198, 206, 214]) * share).astype(np.uint8), "RGB")


def _stained(scene: world.Scene, size: int) -> Image.Image:
    """Its colours changed about, behind black lines."""
    red, green, blue = _as("plain", scene, size).split()
    lines = ImageOps.autocontrast(_as("sketch", scene, size).convert("L")).point(lambda v: 0 if v < 130 else 255)
    glass = Image.merge("RGB", (green, blue, red))
    return Image.composite(glass, Image.new("RGB", glass.size, (10, 10, 12)), lines)


def _mosaic(scene: world.Scene, size: int) -> Image.Image:
    """Tiles of one colour each, with pale joints."""
    across = max(1, size // 6)
    tiles = _as("plain", scene, size).resize((across, across), Image.Resampling.BOX)
    values = np.asarray(tiles.resize((size, size), Image.Resampling.NEAREST)).copy()
    joint = np.arange(size) * across % size < across
    values[joint], values[:, joint] = (214, 208, 196), (214, 208, 196)
    return Image.fromarray(values, "RGB")


def _engraving(scene: world.Scene, size: int) -> Image.Image:
    """Dark waves on cream, the wider the darker."""
    grey = np.asarray(ImageOps.autocontrast(_as("plain", scene, size).convert("L")), np.float32) / 255
    y, x = np.mgrid[0:size, 0:size]
    wave = (np.sin((y + 2 * np.sin(x * 12 / size)) * 2 * np.pi * 26 / size) + 1) / 2
    ink = np.clip((1 - grey - wave) * 6 + 0.5, 0, 1)[..., None]
    cream, dark = np.array([240, 230, 208]), np.array([46, 34, 28])
    return Image.fromarray((cream * (1 - ink) + dark * ink).astype(np.uint8), "RGB")


def _negative(scene: world.Scene, size: int) -> Image.Image:
    return ImageOps.invert(_as("plain", scene, size))


def _relief(scene: world.Scene, size: int) -> Image.Image:
    """Pressed into warm clay, lit from one corner."""
    pressed = np.asarray(_as("plain", scene, size).convert("L").filter(ImageFilter.EMBOSS), np.float32) / 255
    return Image.fromarray((pressed[..., None] * np.array([236, 180, 140])).clip(0, 255).astype(np.uint8), "RGB")


def _rain(scene: world.Scene, size: int) -> Image.Image:
    """Greyed, behind slanting streaks."""
    dull = np.asarray(_as("plain", scene, size), np.float32) * 0.6 + np.array([40, 46, 56])
    y, x = np.mgrid[0:size, 0:size]
    lane = (x * 64 // size + y * 16 // size) % 64
    rng = np.random.default_rng(round(scene.x * 1e6))
    streak = (rng.random(64) < 0.22)[lane] & ((y * 64 // size + (rng.random(64) * 40).astype(int)[lane]) % 40 < 16)
    return Image.fromarray(np.where(streak[..., None], dull * 0.5 + 110, dull).clip(0, 255).astype(np.uint8), "RGB")


def _glitch(scene: world.Scene, size: int) -> Image.Image:
    """Its red and blue moved apart, behind dark rows."""
    red, green, blue = (np.asarray(band, np.float32) for band in _as("plain", scene, size).split())
    off = size // 21
    values = np.stack([np.roll(red, -off, 1), green, np.roll(blue, off, 1)], -1)
    values[np.arange(size) * 64 // size % 2 == 1] *= 0.72
    return Image.fromarray(values.astype(np.uint8), "RGB")


def _crayon(scene: world.Scene, size: int) -> Image.Image:
    """Wax on rough paper, whose grain shows through."""
    grain = np.random.default_rng(round(scene.x * 1e6)).normal(size=(64, 64)).astype(np.float32)
    grain = np.asarray(Image.fromarray(grain).resize((size, size), Image.Resampling.NEAREST))[..., None]
    wax = np.asarray(_as("plain", scene, size), np.float32)
    return Image.fromarray(np.where(grain > 0.55, wax * 0.35 + 160, wax * 0.9).clip(0, 255).astype(np.uint8), "RGB")


def _gold(scene: world.Scene, size: int) -> Image.Image:
    """Thin gold lines on black."""
    lines = ImageOps.autocontrast(_as("plain", scene, size).convert("L").filter(ImageFilter.FIND_EDGES))
    return _mapped(lines, [(12, 10, 14), (150, 110, 40), (255, 226, 150)])


def _pastel(scene: world.Scene, size: int) -> Image.Image:
    """Pale and rosy, with its outlines drawn white."""
    pale = Image.blend(_as("plain", scene, size), Image.new("RGB", (size, size), (255, 226, 232)), 0.5)
    lines = ImageOps.autocontrast(_as("sketch", scene, size).convert("L")).point(lambda v: 255 if v < 120 else 0)
    return Image.composite(Image.new("RGB", pale.size, (255, 255, 255)), pale, lines)


def _infrared(scene: world.Scene, size: int) -> Image.Image:
    """Its colours changed about, soft and bright."""
    red, green, blue = _as("plain", scene, size).split()
    soft = Image.merge("RGB", (green, red, ImageOps.invert(blue))).filter(ImageFilter.GaussianBlur(size * 0.008))
    return Image.blend(soft, Image.new("RGB", soft.size, (255, 240, 240)), 0.2)


def _points(scene: world.Scene, size: int) -> Image.Image:
    """Round dabs of its colours, each a little off, on white paper."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    plain = _as("plain", scene, 64)
    large = Image.new("RGB", (4 * size, 4 * size), (252, 250, 244))
    draw = ImageDraw.Draw(large)
    for x, y in rng.uniform(0, 64, (3000, 2)):
        red, green, blue = plain.getpixel((int(x), int(y)))  # type: ignore[misc]
        off = rng.integers(-26, 27, 3)
        x0, y0, r = x * size / 16, y * size / 16, size * 0.045
        draw.ellipse((x0 - r, y0 - r, x0 + r, y0 + r), (red + off[0], green + off[1], blue + off[2]))
    return large.resize((size, size), Image.Resampling.BOX)


def _oil(scene: world.Scene, size: int) -> Image.Image:
    """Patches of one colour with torn edges, in strokes from side to side."""
    rng = np.random.default_rng(round(scene.x * 1e6))

    def rough(height: int, width: int) -> np.ndarray:
        values = Image.fromarray(rng.normal(size=(height, width)).astype(np.float32))
        return np.asarray(values.resize((size, size), Image.Resampling.BILINEAR))

    y, x = ((at + rough(22, 22) * size * 0.018).round().astype(int).clip(0, size - 1) for at in np.mgrid[:size, :size])
    torn = Image.fromarray(np.asarray(_as("plain", scene, size))[y, x])
    patches = np.asarray(torn.filter(ImageFilter.ModeFilter(max(3, size // 24 | 1))), np.float32)
    return Image.fromarray((patches * (1 + 0.09 * rough(size, size // 10)[..., None])).clip(0, 255).astype(np.uint8))


def _contours(scene: world.Scene, size: int) -> Image.Image:
    """As a map: brown lines of equal brightness over pale tints."""
    grey = _as("plain", scene, size).convert("L").filter(ImageFilter.GaussianBlur(size * 0.02))
    height = np.asarray(grey, np.float32) / 20
    step = np.floor(height)
    lines = (step != np.roll(step, 1, 0)) | (step != np.roll(step, 1, 1))
    tint = _mapped(grey, [(150, 196, 150), (226, 232, 180), (250, 240, 224)])
    return Image.composite(Image.new("RGB", tint.size, (140, 84, 50)), tint, Image.fromarray(lines))


def _cinema(scene: world.Scene, size: int) -> Image.Image:
    """Its shadows turned teal and its lights orange; nothing but colours changes."""
    values = np.asarray(_as("plain", scene, size), np.float32)
    grey = values.mean(-1, keepdims=True) / 255
    graded = grey * np.array([255, 196, 140]) + (1 - grey) * np.array([10, 60, 72])
    return Image.fromarray((values * 0.4 + graded * 0.6).clip(0, 255).astype(np.uint8))


def _ripple(scene: world.Scene, size: int) -> Image.Image:
    """Seen through ribbed glass."""
    y, x = np.mgrid[0:size, 0:size]
    across = (x + size * 0.03 * np.sin(x * 2 * np.pi * 12 / size)).round().astype(int).clip(0, size - 1)
    seen = np.asarray(_as("plain", scene, size), np.float32)[y, across]
    rib = 1 + 0.12 * np.cos(x * 2 * np.pi * 12 / size)[..., None]
    return Image.fromarray((seen * rib).clip(0, 255).astype(np.uint8))


PAINTERS: dict[str, Callable[[world.Scene, int], Image.Image]] = {
    **{style: (lambda scene, size, style=style: _as(style, scene, size)) for style in world.STYLES},
    "duotone": _duotone,
    "pixel": _pixel,
    "blueprint": _blueprint,
    "thermal": _thermal,
    "wash": _wash,
    "poster": _poster,
    "dusk": _dusk,
    "sepia": _sepia,
    "chalk": _chalk,
    "halftone": _halftone,
    "fog": _fog,
    "stained": _stained,
    "mosaic": _mosaic,
    "engraving": _engraving,
    "negative": _negative,
    "relief": _relief,
    "rain": _rain,
    "glitch": _glitch,
    "crayon": _crayon,
    "gold": _gold,
    "pastel": _pastel,
    "infrared": _infrared,
    "points": _points,
    "oil": _oil,
    "contours": _contours,
    "cinema": _cinema,
    "ripple": _ripple,
}
TUNING = ("neon", "sketch", "duotone", "pixel")
"""Styles on which limits were set."""
FRESH = ("blueprint", "thermal", "wash", "poster", "dusk")
"""Styles that no limit of `advice` has seen."""
LATER = ("sepia", "chalk", "halftone", "fog", "stained")
"""Styles that the first limit of `strays` had not seen, and the second has."""
THIRD = ("mosaic", "engraving", "negative", "relief", "rain")
"""Styles that its second limit had not seen, and the third has."""
LAST = ("glitch", "crayon", "gold", "pastel", "infrared")
"""Styles that its third limit had not seen, and the rule that stands has."""
FINAL = ("points", "oil", "contours", "cinema", "ripple")
"""Styles that no limit has seen."""


def paint(scene: world.Scene, size: int) -> Image.Image:
    """The scene in its style, which may be one of this module."""
    return PAINTERS[scene.style](scene, size)


def write(folder: Path, scenes: list[world.Scene], captions: list[str], size: int) -> None:
    """img001.png … and metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes, 1):
        paint(scene, size).save(folder / f"img{i:03d}.png")
    rows = "".join(f'img{i:03d}.png,"{caption}"\n' for i, caption in enumerate(captions, 1))
    (folder / "metadata.csv").write_text("filename,prompt\n" + rows, encoding="utf-8")
