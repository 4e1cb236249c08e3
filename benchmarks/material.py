"""Pictures made from nothing but seeds, as varied as can be: the material on which the checks are measured.

Photographs cannot be shipped, so what makes a picture hard is imitated: the statistics of natural scenes (dead leaves
with radii from a power law, 1/f noise, ridges by midpoint displacement), shallow focus, smooth skies, soft skin beside
sharp lashes, flat art, line art, fractals, buildings, and the miniature world. Everything is drawn twice as large and
reduced, as a lens and a sensor do, and gets a little grain or sharpening at random.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lora_scripts.demo import world

Rng = np.random.Generator


def _palette(rng: Rng, count: int) -> np.ndarray:
    """`count` colours around a few hues, dark to bright: [count, 3] in 0 … 255."""
    base = rng.uniform(20, 235, (max(2, count // 4), 3))
    picked = base[rng.integers(len(base), size=count)] + rng.normal(0, 28, (count, 3))
    return np.clip(picked * rng.uniform(0.5, 1.25, (count, 1)), 0, 255)


def noise(rng: Rng, size: int, slope: float) -> np.ndarray:
    """Noise whose amplitude falls as 1 / f^slope: float [size, size], mean 0, deviation 1."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / f**slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return field / field.std()


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8), "RGB")


def _textured(image: Image.Image, rng: Rng, strength: float) -> Image.Image:
    field = noise(rng, image.width, rng.uniform(0.8, 1.2))[..., None]
    return _image(np.asarray(image, np.float32) * (1 + strength * 0.08 * field))


def leaves(rng: Rng, size: int) -> Image.Image:
    """Dead leaves: discs that hide each other, radii r with density r^-3 (Lee, Mumford and Huang, 2001)."""
    return _leaves(rng, size, lambda draw, box, colour: draw.ellipse(box, fill=colour))


def shards(rng: Rng, size: int) -> Image.Image:
    """Dead leaves of triangles to hexagons, with a fine texture."""

    def shard(draw: ImageDraw.ImageDraw, box: tuple[float, ...], colour: tuple[int, ...]) -> None:
        corners, turn = int(rng.integers(3, 7)), rng.uniform(0, 2 * math.pi)
        cx, cy, rx, ry = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
        angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
        draw.polygon([(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles], fill=colour)

    return _textured(_leaves(rng, size, shard), rng, rng.uniform(0, 1.5))


def _leaves(rng: Rng, size: int, put: Callable[..., None]) -> Image.Image:
    small, large, count = size * rng.uniform(0.006, 0.02), size * rng.uniform(0.2, 0.4), 2200
    u = rng.uniform(size=count)
    radii = 1 / np.sqrt(u / small**2 + (1 - u) / large**2)
    colours = _palette(rng, count)
    image = Image.new("RGB", (size, size), tuple(colours[0].astype(int)))
    draw = ImageDraw.Draw(image)
    for r, (x, y), colour in zip(radii, rng.uniform(-0.05, 1.05, (count, 2)) * size, colours, strict=True):
        stretch = rng.uniform(0.6, 1.6)
        put(draw, (x - r * stretch, y - r / stretch, x + r * stretch, y + r / stretch), tuple(colour.astype(int)))
    return image


def clouds(rng: Rng, size: int) -> Image.Image:
    """1/f noise in colours: as natural textures fall off, without any edge."""
    slope = rng.uniform(0.75, 1.1)
    ends = _palette(rng, 3)
    first, second = noise(rng, size, slope)[..., None], noise(rng, size, slope + 0.2)[..., None]
    return _image(ends[0] + 0.25 * first * (ends[1] - 100) + 0.2 * second * (ends[2] - 120) + 20 * first)


def landscape(rng: Rng, size: int) -> Image.Image:
    """A smooth sky, ridges one behind the other, a meadow or a lake before them."""
    top, low = _palette(rng, 2)
    ramp = np.linspace(0, 1, size)[:, None, None]
    sky = top * (1 - ramp) + low * ramp + noise(rng, size, 1.9)[..., None] * rng.uniform(0, 8)
    out = np.broadcast_to(sky, (size, size, 3)).copy()
    rows = np.arange(size)[:, None]
    ridges = int(rng.integers(2, 5))
    for i in range(ridges):
        line = noise(rng, size, rng.uniform(1.1, 1.5))[0]
        edge = size * (0.35 + 0.45 * i / ridges) + line * size * 0.04
        ground = _palette(rng, 1)[0] + noise(rng, size, rng.uniform(0.7, 1.1))[..., None] * rng.uniform(4, 22)
        out = np.where((rows > edge[None])[..., None], ground, out)
    return _image(out)


def portrait(rng: Rng, size: int) -> Image.Image:
    """A soft face with few sharp things (lashes, strands of hair) before a background out of focus."""
    ground = leaves(rng, size // 4).resize((size, size), Image.Resampling.BICUBIC)
    image = ground.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.01, 0.03)))
    skin = np.array([rng.uniform(120, 235), rng.uniform(90, 190), rng.uniform(70, 165)])
    mask = Image.new("L", (size, size), 0)
    cx, cy, rx, ry = size * rng.uniform(0.42, 0.58), size * 0.5, size * rng.uniform(0.2, 0.26), size * 0.32
    ImageDraw.Draw(mask).ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=255)
    y, x = np.mgrid[0:size, 0:size] / size
    light = 0.75 + 0.45 * np.exp(-((x - 0.4) ** 2 + (y - 0.4) ** 2) / 0.06) + 0.02 * noise(rng, size, 1.4)
    face = _image(skin * light[..., None])
    image.paste(face, mask=mask.filter(ImageFilter.GaussianBlur(size * 0.002)))
    draw = ImageDraw.Draw(image)
    for side in (-1, 1):
        ex, ey, r = cx + side * rx * 0.42, cy - ry * 0.12, rx * 0.16
        draw.ellipse((ex - r * 1.6, ey - r, ex + r * 1.6, ey + r), fill=(238, 236, 230))
        draw.ellipse((ex - r, ey - r, ex + r, ey + r), fill=tuple(rng.integers(20, 140, 3).tolist()))
        draw.ellipse((ex - r * 0.4, ey - r * 0.4, ex + r * 0.4, ey + r * 0.4), fill=(8, 8, 8))
        for k in range(14):
            a = math.pi * (1.1 + 0.8 * k / 13)
            start, end = (
                (ex + 1.6 * r * math.cos(a), ey + r * math.sin(a)),
                (ex + 2.1 * r * math.cos(a), ey + 1.6 * r * math.sin(a)),
            )
            draw.line((*start, *end), fill=(20, 14, 12), width=max(1, size // 512))
    hair = rng.integers(10, 150, 3)
    for _ in range(420):
        a = rng.uniform(math.pi * 0.95, math.pi * 2.05)
        points = [
            (
                cx + rx * 1.05 * math.cos(a) * (1 + 0.25 * t),
                cy + ry * math.sin(a) * (1 - 0.3 * t) + ry * t * rng.uniform(0.2, 1.1),
            )
            for t in np.linspace(0, 1, 6)
        ]
        draw.line(
            points,
            fill=tuple(int(v) for v in np.clip(hair + rng.integers(-30, 50), 0, 255)),
            width=max(1, size // 600),
            joint="curve",
        )
    return image


def bokeh(rng: Rng, size: int) -> Image.Image:
    """Shallow focus: one sharp textured thing, everything else far out of focus."""
    far = landscape(rng, size) if rng.random() < 0.5 else leaves(rng, size)
    image = far.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.015, 0.04)))
    thing = shards(rng, size) if rng.random() < 0.5 else _textured(leaves(rng, size), rng, 1)
    mask = Image.new("L", (size, size), 0)
    r, cx, cy = size * rng.uniform(0.12, 0.25), size * rng.uniform(0.35, 0.65), size * rng.uniform(0.35, 0.65)
    ImageDraw.Draw(mask).ellipse((cx - r, cy - r * 1.2, cx + r, cy + r * 1.2), fill=255)
    image.paste(thing, mask=mask)
    return image


def lines(rng: Rng, size: int) -> Image.Image:
    """Line art: curves of one colour on a flat or faintly shaded ground."""
    paper = rng.uniform(200, 255, 3) if rng.random() < 0.7 else rng.uniform(10, 60, 3)
    ink = (255 - paper) * rng.uniform(0.2, 0.9)
    image = Image.new("RGB", (size, size), tuple(paper.astype(int)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(8, 40))):
        t = np.linspace(0, 1, 60)
        points = np.stack(
            [
                sum(rng.normal(0, 0.5 / k) * np.sin(math.pi * k * t + rng.uniform(0, 6)) for k in range(1, 4))
                for _ in range(2)
            ],
            1,
        )
        points = (points * 0.35 + rng.uniform(0.2, 0.8, 2)) * size
        draw.line(
            [tuple(p) for p in points],
            fill=tuple(ink.astype(int)),
            width=max(2, round(size * rng.uniform(0.002, 0.008))),
            joint="curve",
        )
    return image


def flat_art(rng: Rng, size: int) -> Image.Image:
    """Cells of flat colour, some with outlines, as in posters and cartoons."""
    count = int(rng.integers(6, 40))
    image = Image.new("RGB", (size, size), tuple(_palette(rng, 1)[0].astype(int)))
    draw = ImageDraw.Draw(image)
    outline = (20, 20, 24) if rng.random() < 0.5 else None
    for colour in _palette(rng, count):
        centre, reach = rng.uniform(0, 1, 2) * size, size * rng.uniform(0.05, 0.3)
        n = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * math.pi, n))
        points = [(centre[0] + reach * math.cos(a), centre[1] + reach * math.sin(a)) for a in angles]
        draw.polygon(points, fill=tuple(colour.astype(int)), outline=outline, width=max(1, size // 300))
    return image


def fractal(rng: Rng, size: int) -> Image.Image:
    """A part of a Julia set, coloured by smooth escape time."""
    angle = rng.uniform(0, 2 * math.pi)
    c = 0.7885 * complex(math.cos(angle), math.sin(angle))
    zoom, centre = rng.uniform(0.5, 1.4), rng.normal(0, 0.25, 2)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    z = (x * zoom + centre[0]) + 1j * (y * zoom + centre[1])
    steps = np.zeros(z.shape, np.float32)
    for _ in range(40):
        inside = np.abs(z) < 4
        z = np.where(inside, z * z + c, z)
        steps += inside
    phase = rng.uniform(0, 6, 3)
    return _image(127 + 120 * np.sin(steps[..., None] * rng.uniform(0.1, 0.4) + phase))


def city(rng: Rng, size: int) -> Image.Image:
    """Buildings with rows of windows before a dusk sky."""
    top, low = _palette(rng, 2)
    ramp = np.linspace(0, 1, size)[:, None, None]
    image = _image(np.broadcast_to(top * (1 - ramp) + low * ramp, (size, size, 3)))
    draw = ImageDraw.Draw(image)
    for colour in _palette(rng, int(rng.integers(6, 14))) * 0.6:
        x, width, height = rng.uniform(-0.1, 1) * size, rng.uniform(0.08, 0.25) * size, rng.uniform(0.25, 0.85) * size
        draw.rectangle((x, size - height, x + width, size), fill=tuple(colour.astype(int)))
        step, lit = size * rng.uniform(0.012, 0.03), tuple(_palette(rng, 1)[0].astype(int))
        for wy in np.arange(size - height + step, size, step * 1.6):
            for wx in np.arange(x + step * 0.6, x + width - step, step * 1.3):
                if rng.random() < 0.6:
                    draw.rectangle((wx, wy, wx + step * 0.6, wy + step * 0.8), fill=lit)
    return _textured(image, rng, rng.uniform(0, 0.8))


def weave(rng: Rng, size: int) -> Image.Image:
    """A surface with a direction: wood, cloth, water."""
    y, x = np.mgrid[0:size, 0:size] / size
    turn = rng.uniform(0, math.pi)
    along = x * math.cos(turn) + y * math.sin(turn) + 0.03 * noise(rng, size, 1.7)
    bands = np.sin(2 * math.pi * along * rng.uniform(15, 60)) + 0.6 * noise(rng, size, rng.uniform(0.8, 1.1))
    low, high = _palette(rng, 2)
    return _image(low + (high - low + 30) * (0.5 + 0.25 * bands[..., None]))


def scene(style: str) -> Callable[[Rng, int], Image.Image]:
    """The miniature world in one of its styles."""

    def draw(rng: Rng, size: int) -> Image.Image:
        source = random.Random(int(rng.integers(1 << 60)))
        return world.draw(replace(world.place(source.choice(world.all_keys()), source), style=style), size)

    return draw


TUNING: dict[str, Callable[[Rng, int], Image.Image]] = {
    "leaves": leaves,
    "clouds": clouds,
    "portrait": portrait,
    "lines": lines,
    "weave": weave,
    "world plain": scene("plain"),
}
"""Kinds on which thresholds were set."""
HELD_OUT: dict[str, Callable[[Rng, int], Image.Image]] = {
    "shards": shards,
    "landscape": landscape,
    "bokeh": bokeh,
    "flat art": flat_art,
    "fractal": fractal,
    "city": city,
    "world neon": scene("neon"),
    "world sketch": scene("sketch"),
}
"""Kinds that no threshold has seen."""


def picture(make: Callable[[Rng, int], Image.Image], rng: Rng, size: int) -> Image.Image:
    """One picture `size` px wide, of a random aspect ratio, as a camera or a painter would deliver it."""
    fine = make(rng, size * 2)
    sharp = fine.resize((size, size), Image.Resampling.BOX if rng.random() < 0.5 else Image.Resampling.LANCZOS)
    if rng.random() < 0.3:
        sharp = sharp.filter(ImageFilter.UnsharpMask(1, int(rng.integers(30, 90)), 0))
    if rng.random() < 0.5:
        grain = rng.normal(0, rng.uniform(0.5, 3), (size, size, 1)) + rng.normal(0, 0.5, (size, size, 3))
        sharp = _image(np.asarray(sharp, np.float32) + grain)
    ratio = rng.choice([1.0, 1.0, 0.75, 2 / 3])
    short = round(size * ratio)
    start = int(rng.integers(0, size - short + 1))
    box = (0, start, size, start + short) if rng.random() < 0.5 else (start, 0, start + short, size)
    return sharp.crop(box)
