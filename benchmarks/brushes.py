"""How further styles of `benchmarks.styles` are painted: each paints a scene of its own, at a size in pixels."""

from __future__ import annotations

import numpy as np
from benchmarks.painters import as_of, mapped
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from lora_scripts.demo import world


def _strewn(rng: np.random.Generator, across: int, size: int) -> np.ndarray:
    """Smooth noise, of about one lump to each of `across` parts of the width; (size, size)."""
    lumps = Image.fromarray(rng.normal(size=(across, across)).astype(np.float32))
    return np.asarray(lumps.resize((size, size), Image.Resampling.BICUBIC))


def risograph(scene: world.Scene, size: int) -> Image.Image:
    """Pink and blue ink, grainy, the one printed a little beside the other."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    values = np.asarray(as_of("plain", scene, size), np.float32) / 255
    off, page = max(1, size // 48), np.array([248.0, 244.0, 234.0])
    for cover, ink in (
        (np.roll(1 - values[..., 1], (off, -off), (0, 1)), (255, 72, 150)),
        (1 - values[..., 0], (0, 100, 180)),
    ):
        share = (cover * 0.92 + 0.06 * _strewn(rng, 64, size)).clip(0, 1)[..., None]
        page = page * (1 - share * (1 - np.array(ink) / 255))
    return Image.fromarray(page.astype(np.uint8), "RGB")


def swirl(scene: world.Scene, size: int) -> Image.Image:
    """Short thick strokes that run around a few whirls, in its colours drawn to blue and yellow."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    plain = as_of("plain", scene, 64)
    starry = mapped(plain, [(12, 22, 70), (36, 84, 168), (120, 176, 200), (250, 222, 96)])
    blended = Image.blend(plain, starry, 0.4)
    whirls, turn = rng.random((6, 2)), rng.choice((-1, 1), 6)
    at = rng.random((2600, 2))
    x, y = (at.T * 64).astype(int)
    colours = (np.asarray(blended)[y, x] * rng.uniform(0.78, 1.22, (len(at), 1))).clip(0, 255).astype(int)
    paths = [at]
    for _ in range(4):
        away = paths[-1][:, None] - whirls
        flow = ((turn / ((away**2).sum(-1) + 0.01))[..., None] * away[..., ::-1] * (-1, 1)).sum(1)
        paths.append(paths[-1] + 0.012 * flow / np.linalg.norm(flow, axis=1, keepdims=True))
    large = blended.resize((2 * size, 2 * size))
    draw = ImageDraw.Draw(large)
    for path, colour in zip((np.stack(paths, 1) * 2 * size).tolist(), colours.tolist(), strict=True):
        draw.line([tuple(point) for point in path], tuple(colour), max(1, round(0.03 * size)), "curve")
    return large.resize((size, size), Image.Resampling.BOX)


def papercut(scene: world.Scene, size: int) -> Image.Image:
    """Sheets of coloured paper, the smaller before the larger, each with a shadow on those behind it."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    fine = as_of("plain", scene, 2 * size).filter(ImageFilter.ModeFilter(5))
    few = fine.quantize(10, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    sheets, off, page = np.asarray(few), max(1, size // 20), few.convert("RGB")
    for sheet in np.argsort(-np.bincount(sheets.ravel())):
        shape = Image.fromarray(sheets == sheet).convert("L")
        cast = Image.new("L", shape.size)
        cast.paste(shape, (off, off))
        page.paste((24, 20, 34), mask=cast.filter(ImageFilter.GaussianBlur(size * 0.024)).point(lambda v: v * 0.6))
        page.paste(few.convert("RGB"), mask=shape)
    fibres = 1 + 0.03 * _strewn(rng, 64, size)[..., None]
    small = np.asarray(page.resize((size, size), Image.Resampling.BOX))
    return Image.fromarray((small * fibres).clip(0, 255).astype(np.uint8), "RGB")


def solarised(scene: world.Scene, size: int) -> Image.Image:
    """A silver print lit while it was developed: its lights turned dark, with a pale line where they meet the rest."""
    grey = as_of("plain", scene, size).convert("L").filter(ImageFilter.GaussianBlur(size * 0.006))
    light = np.asarray(ImageOps.autocontrast(grey), np.float32) / 255
    turned = np.where(light < 0.6, light / 0.6, 1 - (light - 0.6) / 0.4 * 0.85)
    slope = np.hypot(*np.gradient(light)) * size / 64
    silver = Image.fromarray((255 * (turned * 0.85 + slope * 0.9).clip(0, 1)).astype(np.uint8), "L")
    return mapped(silver, [(14, 14, 20), (112, 114, 124), (236, 236, 232)])


def stencil(scene: world.Scene, size: int) -> Image.Image:
    """White, red and black sprayed through stencils on a grey wall, with mist around them and drips of black."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    values = np.asarray(as_of("plain", scene, size), np.float32) / 255
    light, strong = values.mean(-1), np.ptp(values, axis=-1) > 0.43
    lines = np.asarray(ImageOps.autocontrast(as_of("sketch", scene, size).convert("L"))) < 120
    black = lines | (light < 0.25)
    for x in rng.integers(0, size, 7):
        foot = np.flatnonzero(black[:, x]).max(initial=0)
        black[foot : foot + int(size * rng.uniform(0.06, 0.2)), x : x + max(1, size // 64)] |= foot > 0
    page = (150 + 9 * _strewn(rng, 10, size) + 9 * _strewn(rng, 64, size))[..., None] * np.array([1, 0.98, 0.94])
    for hole, ink in (light > 0.85, (240, 238, 230)), (strong, (214, 40, 48)), (black, (20, 20, 24)):
        shape = Image.fromarray((hole * 255).astype(np.uint8), "L")
        mist = np.asarray(shape.filter(ImageFilter.GaussianBlur(size * 0.03)), np.float32) / 255
        edge = np.asarray(shape.filter(ImageFilter.GaussianBlur(size * 0.004)), np.float32) / 255
        share = np.maximum(edge * 0.92, mist * (0.3 + 0.25 * _strewn(rng, 64, size))).clip(0, 1)[..., None]
        page = page * (1 - share) + np.array(ink) * share
    return Image.fromarray(page.clip(0, 255).astype(np.uint8), "RGB")


def glow(scene: world.Scene, size: int) -> Image.Image:
    """As through a soft-focus filter: under a bright and warm haze of its own lights."""
    plain = as_of("plain", scene, size)
    lights = plain.point(lambda v: 255 * (v / 255) ** 1.6)
    values = np.asarray(plain.filter(ImageFilter.GaussianBlur(size * 0.006)), np.float32) / 255
    haze = sum(
        np.asarray(lights.filter(ImageFilter.GaussianBlur(size * far)), np.float32) / 510 for far in (0.03, 0.09)
    )
    lit = 1 - (1 - values**1.15) * (1 - 0.75 * haze * np.array([1, 0.94, 0.84]))
    return Image.fromarray((255 * lit).clip(0, 255).astype(np.uint8), "RGB")


def clay(scene: world.Scene, size: int) -> Image.Image:
    """Modelled in clay: each part bulges between creases, lit from the upper left, with dents and prints of fingers."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    y, x = np.mgrid[0:size, 0:size] / size
    lines = ImageOps.autocontrast(as_of("sketch", scene, size).convert("L")).point(lambda v: 255 if v < 130 else 0)
    height = 0.006 * _strewn(rng, 11, size)
    for far, deep in (0.012, 0.03), (0.035, 0.09):
        height -= deep * np.asarray(lines.filter(ImageFilter.GaussianBlur(size * far)), np.float32) / 255
    for at in rng.random((7, 2)):
        away = np.hypot(x - at[0], (y - at[1]) * 0.8)
        height += 0.0022 * np.sin(away * 2 * np.pi * 24) * np.exp(-((away / 0.08) ** 2))
    down, across = np.gradient(height, 1 / size)
    facing = (1 - (down + across) * 0.6) / np.sqrt(1 + down**2 + across**2)
    matte = np.asarray(as_of("plain", scene, size).filter(ImageFilter.ModeFilter(max(3, size // 32 | 1))), np.float32)
    shine = 60 * (facing - 1.15).clip(0, 1)
    lit = (matte * 0.88 + 16) * (0.12 + 0.88 * facing)[..., None] + shine[..., None]
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8), "RGB")


def leak(scene: world.Scene, size: int) -> Image.Image:
    """On film into whose camera light crept: bands of red, orange and nearly white from one side, and pale blacks."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    y, x = np.mgrid[0:size, 0:size] / size
    from_side = x if rng.random() < 0.5 else 1 - x
    values = np.asarray(as_of("plain", scene, size), np.float32) / 255 * 0.9 + 0.07
    lean, wave = rng.uniform(-0.25, 0.25), 0.04 * np.sin(2 * np.pi * (y * rng.uniform(0.5, 1.2) + rng.random()))
    far = from_side + lean * (y - 0.5) + wave
    band = 0.7 * np.exp(-(((far - rng.uniform(0.4, 0.65)) / rng.uniform(0.05, 0.1)) ** 2))
    light = np.exp(-((far.clip(0) / rng.uniform(0.22, 0.34)) ** 2)) * 1.25 + band
    crept = (light[..., None] * np.array([1, 0.62, 0.3]) - np.array([0, 0.1, 0.12])).clip(0, 1)
    return Image.fromarray((255 * (1 - (1 - values) * (1 - crept))).clip(0, 255).astype(np.uint8), "RGB")


def inkwash(scene: world.Scene, size: int) -> Image.Image:
    """Black ink in water on rice paper: few greys that run, darker at their rims, under a brush now wet, now dry."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    fine = 2 * size
    off = [fine * (0.008 * _strewn(rng, 14, fine) + 0.002 * _strewn(rng, 50, fine)) for _ in "yx"]
    y, x = (np.mgrid[:fine, :fine] + off).round().astype(int).clip(0, fine - 1)
    plain = as_of("plain", scene, fine).convert("L").filter(ImageFilter.GaussianBlur(fine * 0.008))
    dark = 1 - np.asarray(ImageOps.autocontrast(plain), np.float32)[y, x] / 255
    washes = Image.fromarray((np.round(dark**1.7 * 4) / 4 * 255).astype(np.uint8), "L")
    run, wide = (
        np.asarray(washes.filter(ImageFilter.GaussianBlur(fine * far)), np.float32) / 255 for far in (0.01, 0.03)
    )
    lines = np.asarray(ImageOps.autocontrast(as_of("sketch", scene, fine).convert("L")))[y, x] < 120
    drawn = Image.fromarray(lines).convert("L").filter(ImageFilter.GaussianBlur(fine * 0.007))
    stroke = (np.asarray(drawn, np.float32) / 255 * 2 + 0.35 * _strewn(rng, 7, fine) - 0.4).clip(0, 0.9)
    pooled = 0.68 * run + 0.6 * (run - wide).clip(0) + 0.06 * run * _strewn(rng, 9, fine)
    ink = np.maximum(pooled, stroke * lines + 0.5 * stroke * ~lines).clip(0, 0.95)[..., None]
    paper = np.array([242, 238, 226]) * (1 + 0.012 * _strewn(rng, 64, fine)[..., None])
    page = Image.fromarray((paper * (1 - ink) + np.array([24, 25, 30]) * ink).clip(0, 255).astype(np.uint8), "RGB")
    return page.resize((size, size), Image.Resampling.BOX)


def hatching(scene: world.Scene, size: int) -> Image.Image:
    """A pen's thin black lines on white, crossed by those of another slant once, twice, thrice, the darker it is."""
    rng = np.random.default_rng(round(scene.x * 1e6))
    fine = 4 * size
    grey = ImageOps.autocontrast(as_of("plain", scene, size).convert("L")).resize((fine, fine))
    dark = 1 - np.asarray(grey, np.float32) / 255
    y, x = np.mgrid[0:fine, 0:fine].astype(np.float32) / fine
    shaky = 0.004 * _strewn(rng, 8, fine)
    ink = np.asarray(as_of("sketch", scene, fine).convert("L")) < 110
    for from_dark, turn in (0.18, 45), (0.38, -45), (0.58, 8), (0.78, 84):
        along = x * np.float32(np.cos(np.radians(turn))) + y * np.float32(np.sin(np.radians(turn))) + shaky
        ink |= (along * 25 % 1 < 0.26) & (dark + 0.03 * _strewn(rng, 24, fine) > from_dark)
    page = Image.fromarray(np.where(ink[..., None], (26, 24, 28), (250, 248, 242)).astype(np.uint8), "RGB")
    return page.resize((size, size), Image.Resampling.BOX)
