"""How some styles of `benchmarks.styles` are painted: each paints a scene of its own, at a size in pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from lora_scripts.demo import world

Ramp = list[tuple[int, int, int]]


def as_of(style: str, scene: world.Scene, size: int) -> Image.Image:
    return world.draw(replace(scene, style=style), size)


def mapped(image: Image.Image, ramp: Ramp) -> Image.Image:
    """Brightness as a colour of the ramp, dark to bright."""
    grey = np.asarray(ImageOps.autocontrast(image.convert("L")), np.float32) / 255 * (len(ramp) - 1)
    stops = np.arange(len(ramp))
    rows = np.stack([np.interp(grey, stops, [colour[i] for colour in ramp]) for i in range(3)], -1)
    return Image.fromarray(rows.round().astype(np.uint8), "RGB")


def duotone(scene: world.Scene, size: int) -> Image.Image:
    return mapped(as_of("plain", scene, size), [(40, 10, 70), (240, 90, 80), (255, 236, 170)])


def pixel(scene: world.Scene, size: int) -> Image.Image:
    """Blocks of an eighth of 64 px in few strong colours."""
    small = as_of("plain", scene, size).resize((20, 20), Image.Resampling.BOX)
    return ImageOps.posterize(small, 2).resize((size, size), Image.Resampling.NEAREST)


def blueprint(scene: world.Scene, size: int) -> Image.Image:
    return mapped(ImageOps.invert(as_of("sketch", scene, size)), [(18, 56, 130), (40, 92, 180), (236, 244, 255)])


def thermal(scene: world.Scene, size: int) -> Image.Image:
    ramp = [(0, 0, 40), (90, 0, 140), (230, 50, 60), (255, 170, 0), (255, 255, 220)]
    return mapped(as_of("plain", scene, size), ramp)


def wash(scene: world.Scene, size: int) -> Image.Image:
    """Pale and soft, on paper."""
    soft = as_of("plain", scene, size).filter(ImageFilter.GaussianBlur(size * 0.02))
    return Image.blend(soft, Image.new("RGB", soft.size, (250, 244, 230)), 0.55)


def poster(scene: world.Scene, size: int) -> Image.Image:
    """Two inks and black outlines."""
    lines = ImageOps.autocontrast(as_of("sketch", scene, size).convert("L")).point(lambda v: 0 if v < 110 else 255)
    flat = mapped(ImageOps.posterize(as_of("plain", scene, size), 2), [(10, 90, 90), (250, 220, 60), (255, 250, 235)])
    return Image.composite(flat, Image.new("RGB", flat.size, (20, 16, 24)), lines)


def dusk(scene: world.Scene, size: int) -> Image.Image:
    """As through dark red glass, with a vignette."""
    values = np.asarray(as_of("plain", scene, size), np.float32)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    shade = (1 - 0.45 * (x**2 + y**2))[..., None]
    return Image.fromarray((values * shade * np.array([0.85, 0.35, 0.4])).clip(0, 255).astype(np.uint8), "RGB")


def sepia(scene: world.Scene, size: int) -> Image.Image:
    return mapped(as_of("plain", scene, size), [(38, 20, 8), (150, 100, 60), (246, 228, 196)])


def chalk(scene: world.Scene, size: int) -> Image.Image:
    """White lines on a dark green board."""
    return mapped(
        ImageOps.invert(as_of("sketch", scene, size).convert("L")), [(24, 52, 44), (48, 78, 68), (240, 240, 230)]
    )


def halftone(scene: world.Scene, size: int) -> Image.Image:
    """Dots of one ink, the larger the darker, over the picture's pale colours."""
    plain = as_of("plain", scene, size)
    y, x = np.mgrid[0:size, 0:size] * (2 * np.pi * 32 / size)
    ink = np.asarray(plain.convert("L"), np.float32) / 255 < (np.cos(x) * np.cos(y) + 1) / 2
    pale = Image.blend(plain, Image.new("RGB", plain.size, (255, 250, 240)), 0.6)
    return Image.composite(Image.new("RGB", plain.size, (60, 20, 90)), pale, Image.fromarray(ink))


def fog(scene: world.Scene, size: int) -> Image.Image:
    """The paler the higher, and soft."""
    soft = np.asarray(as_of("plain", scene, size).filter(ImageFilter.GaussianBlur(size * 0.012)), np.float32)
    share = np.linspace(0.8, 0.35, size)[:, None, None]
    return Image.fromarray((soft * (1 - share) + np.array([198, 206, 214]) * share).astype(np.uint8), "RGB")


def stained(scene: world.Scene, size: int) -> Image.Image:
    """Its colours changed about, behind black lines."""
    red, green, blue = as_of("plain", scene, size).split()
    lines = ImageOps.autocontrast(as_of("sketch", scene, size).convert("L")).point(lambda v: 0 if v < 130 else 255)
    glass = Image.merge("RGB", (green, blue, red))
    return Image.composite(glass, Image.new("RGB", glass.size, (10, 10, 12)), lines)


def mosaic(scene: world.Scene, size: int) -> Image.Image:
    """Tiles of one colour each, with pale joints."""
    across = max(1, size // 6)
    tiles = as_of("plain", scene, size).resize((across, across), Image.Resampling.BOX)
    values = np.asarray(tiles.resize((size, size), Image.Resampling.NEAREST)).copy()
    joint = np.arange(size) * across % size < across
    values[joint], values[:, joint] = (214, 208, 196), (214, 208, 196)
    return Image.fromarray(values, "RGB")


def engraving(scene: world.Scene, size: int) -> Image.Image:
    """Dark waves on cream, the wider the darker."""
    grey = np.asarray(ImageOps.autocontrast(as_of("plain", scene, size).convert("L")), np.float32) / 255
    y, x = np.mgrid[0:size, 0:size]
    wave = (np.sin((y + 2 * np.sin(x * 12 / size)) * 2 * np.pi * 26 / size) + 1) / 2
    ink = np.clip((1 - grey - wave) * 6 + 0.5, 0, 1)[..., None]
    cream, dark = np.array([240, 230, 208]), np.array([46, 34, 28])
    return Image.fromarray((cream * (1 - ink) + dark * ink).astype(np.uint8), "RGB")


def negative(scene: world.Scene, size: int) -> Image.Image:
    return ImageOps.invert(as_of("plain", scene, size))


def relief(scene: world.Scene, size: int) -> Image.Image:
    """Pressed into warm clay, lit from one corner."""
    pressed = np.asarray(as_of("plain", scene, size).convert("L").filter(ImageFilter.EMBOSS), np.float32) / 255
    return Image.fromarray((pressed[..., None] * np.array([236, 180, 140])).clip(0, 255).astype(np.uint8), "RGB")


def rain(scene: world.Scene, size: int) -> Image.Image:
    """Greyed, behind slanting streaks."""
    dull = np.asarray(as_of("plain", scene, size), np.float32) * 0.6 + np.array([40, 46, 56])
    y, x = np.mgrid[0:size, 0:size]
    lane = (x * 64 // size + y * 16 // size) % 64
    rng = np.random.default_rng(round(scene.x * 1e6))
    streak = (rng.random(64) < 0.22)[lane] & ((y * 64 // size + (rng.random(64) * 40).astype(int)[lane]) % 40 < 16)
    return Image.fromarray(np.where(streak[..., None], dull * 0.5 + 110, dull).clip(0, 255).astype(np.uint8), "RGB")


def glitch(scene: world.Scene, size: int) -> Image.Image:
    """Its red and blue moved apart, behind dark rows."""
    red, green, blue = (np.asarray(band, np.float32) for band in as_of("plain", scene, size).split())
    off = size // 21
    values = np.stack([np.roll(red, -off, 1), green, np.roll(blue, off, 1)], -1)
    values[np.arange(size) * 64 // size % 2 == 1] *= 0.72
    return Image.fromarray(values.astype(np.uint8), "RGB")


def crayon(scene: world.Scene, size: int) -> Image.Image:
    """Wax on rough paper, whose grain shows through."""
    grain = np.random.default_rng(round(scene.x * 1e6)).normal(size=(64, 64)).astype(np.float32)
    grain = np.asarray(Image.fromarray(grain).resize((size, size), Image.Resampling.NEAREST))[..., None]
    wax = np.asarray(as_of("plain", scene, size), np.float32)
    return Image.fromarray(np.where(grain > 0.55, wax * 0.35 + 160, wax * 0.9).clip(0, 255).astype(np.uint8), "RGB")


def gold(scene: world.Scene, size: int) -> Image.Image:
    """Thin gold lines on black."""
    lines = ImageOps.autocontrast(as_of("plain", scene, size).convert("L").filter(ImageFilter.FIND_EDGES))
    return mapped(lines, [(12, 10, 14), (150, 110, 40), (255, 226, 150)])


def pastel(scene: world.Scene, size: int) -> Image.Image:
    """Pale and rosy, with its outlines drawn white."""
    pale = Image.blend(as_of("plain", scene, size), Image.new("RGB", (size, size), (255, 226, 232)), 0.5)
    lines = ImageOps.autocontrast(as_of("sketch", scene, size).convert("L")).point(lambda v: 255 if v < 120 else 0)
    return Image.composite(Image.new("RGB", pale.size, (255, 255, 255)), pale, lines)


def infrared(scene: world.Scene, size: int) -> Image.Image:
    """Its colours changed about, soft and bright."""
    red, green, blue = as_of("plain", scene, size).split()
    soft = Image.merge("RGB", (green, red, ImageOps.invert(blue))).filter(ImageFilter.GaussianBlur(size * 0.008))
    return Image.blend(soft, Image.new("RGB", soft.size, (255, 240, 240)), 0.2)


def woodcut(scene: world.Scene, size: int) -> Image.Image:
    """Black and paper alone, cut along the slope of what is shown."""
    soft = as_of("plain", scene, size).convert("L").filter(ImageFilter.GaussianBlur(size * 0.01))
    grey = np.asarray(ImageOps.autocontrast(soft), np.float32) / 255
    y, x = np.mgrid[0:size, 0:size] / size
    cut = (np.sin(2 * np.pi * (22 * y + 9 * x + 4 * grey)) + 1) / 2
    paper, ink = np.array([244, 236, 220]), np.array([22, 18, 20])
    return Image.fromarray(np.where((cut < 1.5 * grey - 0.2)[..., None], paper, ink).astype(np.uint8), "RGB")


def facets(scene: world.Scene, size: int) -> Image.Image:
    """Of cells of one colour each, that of their middle, around points strewn about."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    points = rng.random((260, 2)) * size
    y, x = np.mgrid[0:size, 0:size]
    nearest = ((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).argmin(-1)
    values = np.asarray(as_of("plain", scene, size).filter(ImageFilter.GaussianBlur(size * 0.012)))
    middle = points.astype(int).clip(0, size - 1)
    return Image.fromarray(values[middle[:, 1], middle[:, 0]][nearest], "RGB")


def nightvision(scene: world.Scene, size: int) -> Image.Image:
    """Green, grainy, dark towards the corners."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    grey = np.asarray(ImageOps.autocontrast(as_of("plain", scene, size).convert("L")), np.float32) / 255
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    seen = (grey * 0.8 + 0.1 + rng.normal(0, 0.07, grey.shape)) * (1.05 - 0.4 * (x**2 + y**2))
    return Image.fromarray((seen[..., None].clip(0, 1) * np.array([90, 255, 110])).astype(np.uint8), "RGB")


def linen(scene: world.Scene, size: int) -> Image.Image:
    """Printed on coarse cloth, with muted colours."""
    y, x = np.mgrid[0:size, 0:size] * (2 * np.pi * 42 / size)
    weave = 0.86 + 0.14 * np.where((np.sin(x) * np.sin(y) > 0), np.cos(x), np.cos(y))
    dull = np.asarray(Image.blend(as_of("plain", scene, size), Image.new("RGB", (size, size), (196, 184, 160)), 0.35))
    return Image.fromarray((dull * weave[..., None]).clip(0, 255).astype(np.uint8), "RGB")


def shallow(scene: world.Scene, size: int) -> Image.Image:
    """As through a tilted lens: sharp in a band across the thing alone, and of strong colours."""
    plain = ImageEnhance.Color(as_of("plain", scene, size)).enhance(1.5)
    soft = plain.filter(ImageFilter.GaussianBlur(size * 0.03))
    away = np.abs(np.arange(size) / size - 0.6)
    mask = Image.fromarray(np.repeat((255 * (1 - (away / 0.16).clip(0, 1)))[:, None], size, 1).astype(np.uint8), "L")
    return Image.composite(plain, soft, mask)
