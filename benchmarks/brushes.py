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
