"""Pictures that are not scenes of the miniature world, drawn so that a captioner can learn where its world ends.

Some have the statistics of photographs (noise of natural spectra; overlapping leaves of all sizes, after Lee, Mumford
and Huang 2001), some are near misses: a landscape without its object or with another one, a scene upside down, cut into
tiles, or beside others. Everything is a function of the generator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lora_scripts.demo import world

SIZE = 128


def _colour(rng: random.Random) -> world.Colour:
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def _scene(rng: random.Random) -> world.Scene:
    return world.place(rng.choice(world.all_keys()), rng, rng.choice(world.STYLES))


def noise(rng: random.Random) -> Image.Image:
    """Noise with power falling as 1 / f^(2a), a from 0 (white) to 2.2 (clouds); colours mixed, or grey."""
    own = np.random.default_rng(rng.randrange(1 << 30))
    f = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    f[0, 0] = 1.0 / SIZE
    spectrum = np.fft.rfft2(own.standard_normal((3, SIZE, SIZE))) / f ** rng.uniform(0.0, 2.2)
    planes = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    mix = own.standard_normal((3, 3)) * rng.choice((0.0, 0.2, 0.6)) + 1.0 / 3.0
    picture = np.tensordot(mix, planes, 1) * rng.uniform(20, 90) + own.uniform(60, 190, (3, 1, 1))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _blob(x: float, y: float, radius: float, rng: random.Random) -> list[world.Point]:
    """An outline of some kind: smooth, jagged, or a polygon of few corners."""
    corners = rng.choice((3, 4, 5, 7, 40, 40))
    waves = [(rng.uniform(0, 0.35), rng.randrange(2, 7), rng.uniform(0, 6.3)) for _ in range(rng.randrange(3))]
    turn, flat = rng.uniform(0, 6.3), rng.uniform(0.4, 1.0)
    points = []
    for i in range(corners):
        a = turn + 2 * math.pi * i / corners
        r = radius * (1.0 + sum(k * math.sin(n * a + p) for k, n, p in waves))
        points.append((x + r * math.cos(a), y + r * flat * math.sin(a)))
    return points


def leaves(rng: random.Random) -> Image.Image:
    """Overlapping shapes, their radii distributed as r^-3: edges and areas as in photographs."""
    image = Image.new("RGB", (SIZE, SIZE), _colour(rng))
    draw = ImageDraw.Draw(image)
    palette, spread = [_colour(rng) for _ in range(rng.randrange(2, 9))], rng.randrange(1, 60)
    for _ in range(rng.choice((6, 25, 80, 250))):
        radius = min(70.0, 4.0 / math.sqrt(max(1e-4, rng.random())))
        fill = tuple(c + rng.randrange(-spread, spread + 1) for c in rng.choice(palette))
        draw.polygon(_blob(rng.uniform(0, SIZE), rng.uniform(0, SIZE), radius, rng), fill=fill)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 3.0)))
    if rng.random() < 0.6:
        image = Image.blend(image, noise(rng), rng.uniform(0.1, 0.5))
    return image


def gradient(rng: random.Random) -> Image.Image:
    """One colour, or a few that run into each other."""
    side = rng.choice((1, 2, 2, 3, 4))
    small = Image.new("RGB", (side, side))
    small.putdata([_colour(rng) for _ in range(side * side)])
    return small.resize((SIZE, SIZE), rng.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)))


def strokes(rng: random.Random) -> Image.Image:
    """Lines on a plain ground: dark on light as in a sketch, or bright on dark as in neon."""
    dark, light = tuple(rng.randrange(70) for _ in range(3)), tuple(rng.randrange(170, 256) for _ in range(3))
    ground, ink = (dark, light) if rng.random() < 0.5 else (light, dark)
    image = Image.new("RGB", (SIZE, SIZE), ground)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randrange(2, 40)):
        points = _blob(rng.uniform(0, SIZE), rng.uniform(0, SIZE), rng.uniform(2, 50), rng)
        draw.line(points[: rng.randrange(2, 41)], fill=ink, width=rng.randrange(1, 4))
    return image.filter(ImageFilter.GaussianBlur(rng.choice((0.0, 0.6, 1.5))))


def tiles(rng: random.Random) -> Image.Image:
    """A scene cut into tiles that are laid out anew."""
    image, n = world.draw(_scene(rng), SIZE), rng.choice((4, 8))
    step = SIZE // n
    boxes = [(x, y, x + step, y + step) for y in range(0, SIZE, step) for x in range(0, SIZE, step)]
    shuffled, out = rng.sample(boxes, len(boxes)), Image.new("RGB", (SIZE, SIZE))
    for source, target in zip(shuffled, boxes, strict=True):
        out.paste(image.crop(source), target)
    return out


def turned(rng: random.Random) -> Image.Image:
    """A scene upside down or lying on its side."""
    way = rng.choice((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270))
    return world.draw(_scene(rng), SIZE).transpose(way)


def contact_sheet(rng: random.Random) -> Image.Image:
    """Four scenes or two, side by side."""
    out, half = Image.new("RGB", (SIZE, SIZE)), SIZE // 2
    wide = rng.random() < 0.4
    for x in (0, half):
        for y in (0,) if wide else (0, half):
            scene = world.draw(_scene(rng), SIZE)
            part = scene.crop((half // 2, 0, half // 2 + half, SIZE)) if wide else scene.resize((half, half))
            out.paste(part, (x, y))
    return out


def landscape(rng: random.Random) -> Image.Image:
    """Ground and sky without an object: it stands outside the picture."""
    return world.draw(replace(_scene(rng), x=-2.0), SIZE)


def stranger(rng: random.Random) -> Image.Image:
    """Ground and sky with something that the world does not have."""
    image = landscape(rng)
    draw = ImageDraw.Draw(image)
    x, y, colour = rng.uniform(40, 88), rng.uniform(50, 90), _colour(rng)
    for _ in range(rng.randrange(1, 5)):
        points = _blob(x + rng.uniform(-12, 12), y + rng.uniform(-20, 10), rng.uniform(8, 34), rng)
        if rng.random() < 0.7:
            draw.polygon(points, fill=colour)
        else:
            draw.line([*points, points[0]], fill=colour, width=2)
        if rng.random() < 0.5:
            colour = _colour(rng)
    return image


# --- kinds that nothing is trained on, to measure with ---------------------------------------------------------------


def mosaic(rng: random.Random) -> Image.Image:
    """Cells around random points, each of one colour."""
    points = np.array([(rng.uniform(0, SIZE), rng.uniform(0, SIZE)) for _ in range(rng.randrange(5, 60))])
    colours = np.array([_colour(rng) for _ in points], dtype=np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE]
    return Image.fromarray(colours[((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).argmin(2)])


def fractal(rng: random.Random) -> Image.Image:
    """A Julia set."""
    c = complex(rng.uniform(-0.9, 0.3), rng.uniform(0.1, 0.75))
    y, x = np.mgrid[-1.4 : 1.4 : SIZE * 1j, -1.4 : 1.4 : SIZE * 1j]
    z, count = x + 1j * y, np.zeros((SIZE, SIZE))
    for _ in range(40):
        inside = np.abs(z) < 2
        count += inside
        z = np.where(inside, z * z + c, z)
    level, low, high = (count / 40)[..., None], np.array(_colour(rng)), np.array(_colour(rng))
    return Image.fromarray((low * (1 - level) + high * level).astype(np.uint8))


def page(rng: random.Random) -> Image.Image:
    """Lines of text, with a bar at the top as a window has it."""
    paper, ink = ((250, 250, 248), (30, 30, 34)) if rng.random() < 0.6 else ((28, 28, 36), (220, 220, 224))
    image = Image.new("RGB", (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, SIZE, rng.randrange(0, 22)), fill=_colour(rng))
    for y in range(26, SIZE - 8, rng.randrange(9, 16)):
        words = ("".join(rng.choices("abcdefghijklmnoprstuvwy", k=rng.randrange(2, 9))) for _ in range(6))
        draw.text((rng.choice((6, 6, 14)), y), " ".join(words)[: rng.randrange(8, 24)], fill=ink)
    return image


def chart(rng: random.Random) -> Image.Image:
    """Axes with bars, or with a curve."""
    image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.line([(14, 8), (14, 114), (122, 114)], fill=(60, 60, 60))
    heights = [rng.uniform(8, 100) for _ in range(rng.randrange(3, 12))]
    step, colour = 106 / len(heights), _colour(rng)
    if rng.random() < 0.5:
        for i, h in enumerate(heights):
            draw.rectangle((16 + i * step, 114 - h, 13 + (i + 1) * step, 114), fill=colour)
    else:
        draw.line([(16 + i * step, 114 - h) for i, h in enumerate(heights)], fill=colour, width=2)
    return image


def face(rng: random.Random) -> Image.Image:
    """A head with hair, eyes and a mouth before a wall."""
    image = gradient(rng) if rng.random() < 0.5 else Image.new("RGB", (SIZE, SIZE), _colour(rng))
    draw, x, y = ImageDraw.Draw(image), rng.uniform(50, 78), rng.uniform(52, 72)
    w, h = rng.uniform(22, 34), rng.uniform(28, 42)
    skin = rng.choice(((241, 205, 175), (224, 172, 130), (160, 110, 76), (92, 60, 42)))
    draw.ellipse((x - w * 1.7, y + h * 0.9, x + w * 1.7, y + h * 3), fill=_colour(rng))
    draw.ellipse((x - w * 1.2, y - h * 1.25, x + w * 1.2, y + h * 0.6), fill=_colour(rng))
    draw.ellipse((x - w, y - h, x + w, y + h), fill=skin)
    for side in (-1, 1):
        eye = x + side * w * 0.42
        draw.ellipse((eye - 5, y - 8, eye + 5, y - 2), fill=(250, 250, 250))
        draw.ellipse((eye - 2, y - 7, eye + 2, y - 3), fill=(40, 40, 60))
    draw.arc((x - w * 0.4, y + 4, x + w * 0.4, y + h * 0.6), 20, 160, fill=(150, 50, 50), width=2)
    return image


def snowman(rng: random.Random) -> Image.Image:
    """Ground and sky, and on it a snowman, drawn as flat as the world's own things."""
    image = world.draw(replace(_scene(rng), x=-2.0, style="plain"), SIZE)
    draw, x, y, r = ImageDraw.Draw(image), rng.uniform(44, 84), 100.0, rng.uniform(18, 23)
    for scale in (1.0, 0.75, 0.5):
        draw.ellipse(
            (x - r * scale, y - 2 * r * scale, x + r * scale, y), fill=(248, 250, 252), outline=(150, 160, 170)
        )
        y -= 1.7 * r * scale
    draw.polygon([(x, y + 7), (x + 14, y + 9), (x, y + 11)], fill=(240, 130, 30))
    draw.rectangle((x - 8, y - 12, x + 8, y + 1), fill=(40, 40, 48))
    return image


KINDS: dict[str, Callable[[random.Random], Image.Image]] = {
    "noise": noise,
    "leaves": leaves,
    "gradient": gradient,
    "strokes": strokes,
    "tiles": tiles,
    "turned": turned,
    "contact sheet": contact_sheet,
    "landscape": landscape,
    "stranger": stranger,
}
"""What the captioner is trained on."""
UNSEEN: dict[str, Callable[[random.Random], Image.Image]] = {
    "mosaic": mosaic,
    "fractal": fractal,
    "page": page,
    "chart": chart,
    "face": face,
    "snowman": snowman,
}


def pictures(seed: int) -> Iterator[Image.Image]:
    """Endless pictures of 128 x 128 px of all KINDS in turn; the same seed gives the same pictures."""
    rng = random.Random(f"elsewhere/{seed}")
    while True:
        for kind in KINDS.values():
            yield kind(rng)
