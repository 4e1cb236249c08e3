"""More styles of the miniature world, for measurements on what no one tuned for: each paints a scene of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks import brushes, painters
from benchmarks.painters import as_of, mapped
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from lora_scripts.demo import world


def _points(scene: world.Scene, size: int) -> Image.Image:
    """Round dabs of its colours, each a little off, on white paper."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    plain = as_of("plain", scene, 64)
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
    torn = Image.fromarray(np.asarray(as_of("plain", scene, size))[y, x])
    patches = np.asarray(torn.filter(ImageFilter.ModeFilter(max(3, size // 24 | 1))), np.float32)
    return Image.fromarray((patches * (1 + 0.09 * rough(size, size // 10)[..., None])).clip(0, 255).astype(np.uint8))


def _contours(scene: world.Scene, size: int) -> Image.Image:
    """As a map: brown lines of equal brightness over pale tints."""
    grey = as_of("plain", scene, size).convert("L").filter(ImageFilter.GaussianBlur(size * 0.02))
    height = np.asarray(grey, np.float32) / 20
    step = np.floor(height)
    lines = (step != np.roll(step, 1, 0)) | (step != np.roll(step, 1, 1))
    tint = mapped(grey, [(150, 196, 150), (226, 232, 180), (250, 240, 224)])
    return Image.composite(Image.new("RGB", tint.size, (140, 84, 50)), tint, Image.fromarray(lines))


def _cinema(scene: world.Scene, size: int) -> Image.Image:
    """Its shadows turned teal and its lights orange; nothing but colours changes."""
    values = np.asarray(as_of("plain", scene, size), np.float32)
    grey = values.mean(-1, keepdims=True) / 255
    graded = grey * np.array([255, 196, 140]) + (1 - grey) * np.array([10, 60, 72])
    return Image.fromarray((values * 0.4 + graded * 0.6).clip(0, 255).astype(np.uint8))


def _ripple(scene: world.Scene, size: int) -> Image.Image:
    """Seen through ribbed glass."""
    y, x = np.mgrid[0:size, 0:size]
    across = (x + size * 0.03 * np.sin(x * 2 * np.pi * 12 / size)).round().astype(int).clip(0, size - 1)
    seen = np.asarray(as_of("plain", scene, size), np.float32)[y, across]
    rib = 1 + 0.12 * np.cos(x * 2 * np.pi * 12 / size)[..., None]
    return Image.fromarray((seen * rib).clip(0, 255).astype(np.uint8))


def _charcoal(scene: world.Scene, size: int) -> Image.Image:
    """Smudged from corner to corner on rough paper; no colours."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    soft = as_of("plain", scene, size).convert("L").filter(ImageFilter.GaussianBlur(size * 0.006))
    dark = 1 - np.asarray(ImageOps.autocontrast(soft), np.float32) / 255
    noise = rng.normal(size=(size, size)).astype(np.float32)
    stroke = np.mean([np.roll(noise, (step, step), (0, 1)) for step in range(size // 12)], 0) * (size // 12) ** 0.5
    grain = Image.fromarray(rng.normal(size=(64, 64)).astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    coal = (dark * (0.85 + 0.22 * stroke + 0.12 * np.asarray(grain))).clip(0, 1)[..., None]
    return Image.fromarray((np.array([236, 232, 224]) * (1 - coal) + 28 * coal).astype(np.uint8), "RGB")


def _stitch(scene: world.Scene, size: int) -> Image.Image:
    """Crosses of one colour each on linen."""
    across = max(1, size // 6)
    cells = np.asarray(as_of("plain", scene, size).resize((across, across), Image.Resampling.BOX), np.float32)
    y, x = (np.mgrid[0:size, 0:size] + 0.5) * across / size % 1
    cross = (np.minimum(abs(x - y), abs(x + y - 1)) < 0.2)[..., None]
    colours = np.asarray(Image.fromarray(cells.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))
    return Image.fromarray(np.where(cross, colours, np.array([222, 212, 192])).astype(np.uint8), "RGB")


def _faded(scene: world.Scene, size: int) -> Image.Image:
    """An old colour print: pale, reddish, without black; nothing but colours changes."""
    values = np.asarray(as_of("plain", scene, size), np.float32) / 255
    grey = values.mean(-1, keepdims=True)
    pale = (0.55 * values + 0.45 * grey) * np.array([0.66, 0.56, 0.5]) + np.array([0.3, 0.24, 0.22])
    return Image.fromarray((pale * 255).clip(0, 255).astype(np.uint8), "RGB")


def _fresco(scene: world.Scene, size: int) -> Image.Image:
    """On old plaster: mottled, with cracks."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    y, x = np.mgrid[0:size, 0:size] / size
    far = np.sort(np.hypot(*(np.stack([y, x])[..., None] - rng.random((2, 1, 1, 40)))), -1)
    crack = (far[..., 1] - far[..., 0] < 0.012)[..., None]
    mottle = Image.fromarray(rng.normal(size=(12, 12)).astype(np.float32)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    share = (0.25 + 0.14 * np.asarray(mottle)[..., None]).clip(0, 0.7)
    plaster = np.asarray(as_of("plain", scene, size), np.float32) * (1 - share) + np.array([214, 200, 178]) * share
    return Image.fromarray(np.where(crack, plaster * 0.55, plaster).clip(0, 255).astype(np.uint8), "RGB")


def _snapshot(scene: world.Scene, size: int) -> Image.Image:
    """Of a cheap camera: hard contrast, grain, dark corners, a little soft."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    soft = as_of("plain", scene, size).filter(ImageFilter.GaussianBlur(size * 0.005))
    values = np.asarray(soft, np.float32) / 255
    hard = values * values * (3 - 2 * values)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    shade = (1.06 - 0.32 * (x**2 + y**2))[..., None]
    grain = rng.normal(scale=0.045, size=(size, size, 1))
    return Image.fromarray(((hard * shade + grain) * 255).clip(0, 255).astype(np.uint8), "RGB")


PAINTERS: dict[str, Callable[[world.Scene, int], Image.Image]] = {
    **{style: (lambda scene, size, style=style: as_of(style, scene, size)) for style in world.STYLES},
    "duotone": painters.duotone,
    "pixel": painters.pixel,
    "blueprint": painters.blueprint,
    "thermal": painters.thermal,
    "wash": painters.wash,
    "poster": painters.poster,
    "dusk": painters.dusk,
    "sepia": painters.sepia,
    "chalk": painters.chalk,
    "halftone": painters.halftone,
    "fog": painters.fog,
    "stained": painters.stained,
    "mosaic": painters.mosaic,
    "engraving": painters.engraving,
    "negative": painters.negative,
    "relief": painters.relief,
    "rain": painters.rain,
    "glitch": painters.glitch,
    "crayon": painters.crayon,
    "gold": painters.gold,
    "pastel": painters.pastel,
    "infrared": painters.infrared,
    "points": _points,
    "oil": _oil,
    "contours": _contours,
    "cinema": _cinema,
    "ripple": _ripple,
    "charcoal": _charcoal,
    "stitch": _stitch,
    "faded": _faded,
    "fresco": _fresco,
    "snapshot": _snapshot,
    "woodcut": painters.woodcut,
    "facets": painters.facets,
    "nightvision": painters.nightvision,
    "linen": painters.linen,
    "shallow": painters.shallow,
    "risograph": brushes.risograph,
    "swirl": brushes.swirl,
    "papercut": brushes.papercut,
    "solarised": brushes.solarised,
    "stencil": brushes.stencil,
    "glow": brushes.glow,
    "clay": brushes.clay,
    "leak": brushes.leak,
    "inkwash": brushes.inkwash,
    "hatching": brushes.hatching,
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
"""Styles that the rule for strays had not seen on the base before the crisper one; limits set since have."""
FINAL2 = ("charcoal", "stitch", "faded", "fresco", "snapshot")
"""Styles that the rule of 1.9 times had not seen, and the limit of twice had."""
FINAL3 = ("woodcut", "facets", "nightvision", "linen", "shallow")
"""Styles that the rule without sharpness had not seen, and the rule that stands has."""
FINAL4 = ("risograph", "swirl", "papercut", "solarised", "stencil")
"""Styles that the mean of uncapped ratios had not seen, and what came after it has."""
FINAL5 = ("glow", "clay", "leak", "inkwash", "hatching")
"""Styles that no rule has seen."""


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
