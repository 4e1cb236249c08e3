"""The miniature world: scenes drawn from a grammar, in several styles, at any size.

A scene is "colour x object x ground x sky" with a position, a size and a seed for its small details. It is drawn from
shapes in picture coordinates (0..1, y down), so that 128 px and 512 px pictures show the same thing, and so that two
styles differ in how they paint, not in what they paint. Everything is a function of the seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lora_scripts.formats.io import save_png

Point = tuple[float, float]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (216, 40, 40),
    "orange": (244, 138, 28),
    "yellow": (246, 214, 50),
    "green": (46, 160, 67),
    "blue": (36, 92, 214),
    "purple": (136, 56, 190),
    "white": (244, 244, 240),
}
OBJECTS = ("house", "tree", "car", "mushroom", "rocket", "flower")
GROUNDS: dict[str, Colour] = {
    "grass": (112, 176, 84),
    "sand": (226, 200, 142),
    "snow": (226, 236, 244),
    "water": (62, 134, 178),
}
SKIES: dict[str, tuple[Colour, Colour]] = {  # (zenith, horizon)
    "a clear sky": ((104, 182, 240), (196, 228, 248)),
    "a sunset sky": ((150, 70, 120), (250, 176, 96)),
    "a night sky": ((12, 16, 48), (40, 48, 104)),
}
STYLES = ("plain", "neon", "sketch")
BROWN, GLASS, DARK = (112, 74, 44), (190, 226, 240), (44, 44, 52)


@dataclass(frozen=True)
class Scene:
    """One picture's content; `draw` makes it visible, `caption` says it."""

    object: str
    colour: str
    ground: str
    sky: str
    x: float = 0.5
    """Centre of the object, as a share of the picture's width."""
    size: float = 0.52
    """Height of the object, as a share of the picture's height."""
    horizon: float = 0.66
    """Where the ground begins, as a share of the picture's height."""
    seed: int = 0
    """Decides stars, clouds, tufts of grass."""
    style: str = "plain"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The content without position: two scenes with one key have one caption."""
        return (self.object, self.colour, self.ground, self.sky)


@dataclass(frozen=True)
class Shape:
    points: tuple[Point, ...]
    fill: Colour
    closed: bool = True
    weight: float = 1.0
    """How strongly the line styles draw it."""


def caption(scene: Scene) -> str:
    """The sentence of a scene: "a red house on sand under a night sky"."""
    article = "an" if scene.colour[0] in "aeiou" else "a"
    return f"{article} {scene.colour} {scene.object} on {scene.ground} under {scene.sky}"


def all_keys() -> list[tuple[str, str, str, str]]:
    """Every content the grammar has (6 x 7 x 4 x 3 = 504), in a fixed order."""
    return [(o, c, g, s) for o in OBJECTS for c in COLOURS for g in GROUNDS for s in SKIES]


def scenes(seed: int, style: str = "plain") -> Iterator[Scene]:
    """Endless random scenes; the same seed gives the same scenes."""
    rng = random.Random(f"scenes/{seed}")
    keys = all_keys()
    while True:
        yield place(rng.choice(keys), rng, style)


def place(key: tuple[str, str, str, str], rng: random.Random, style: str = "plain") -> Scene:
    """A scene with content `key` at a random position and size."""
    return Scene(
        *key,
        x=rng.uniform(0.34, 0.66),
        size=rng.uniform(0.46, 0.62),
        horizon=rng.uniform(0.62, 0.74),
        seed=rng.randrange(1 << 30),
        style=style,
    )


# --- geometry: a scene as shapes, in picture coordinates ------------------------------------------------------------


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> tuple[Point, ...]:
    n = 40
    angles = [math.radians(start + (end - start) * i / n) for i in range(n + 1)]
    return tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles)


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple[Point, ...]:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(255, round(c * factor)) for c in colour)
    return (r, g, b)


def _house(c: Colour) -> list[Shape]:
    return [
        Shape(_box(-0.40, -0.58, 0.40, 0.0), c),
        Shape(((-0.50, -0.56), (0.0, -1.0), (0.50, -0.56)), _shade(c, 0.72)),
        Shape(_box(-0.09, -0.34, 0.09, 0.0), BROWN),
        Shape(_box(-0.31, -0.46, -0.16, -0.28), GLASS),
        Shape(_box(0.16, -0.46, 0.31, -0.28), GLASS),
    ]


def _tree(c: Colour) -> list[Shape]:
    crown = [(-0.24, -0.62, 0.22), (0.24, -0.62, 0.22), (0.0, -0.78, 0.24), (0.0, -0.56, 0.24)]
    return [Shape(_box(-0.07, -0.45, 0.07, 0.0), BROWN)] + [
        Shape(_ellipse(x, y, r, r * 0.95), _shade(c, f), weight=0.8)
        for (x, y, r), f in zip(crown, (0.85, 0.85, 1.0, 1.0), strict=True)
    ]


def _car(c: Colour) -> list[Shape]:
    return [
        Shape(((-0.36, -0.40), (-0.22, -0.68), (0.22, -0.68), (0.40, -0.40)), _shade(c, 0.82)),
        Shape(((-0.27, -0.42), (-0.18, -0.61), (-0.03, -0.61), (-0.03, -0.42)), GLASS),
        Shape(((0.04, -0.42), (0.04, -0.61), (0.18, -0.61), (0.29, -0.42)), GLASS),
        Shape(((-0.62, -0.14), (-0.60, -0.40), (0.58, -0.40), (0.64, -0.14)), c),
        Shape(_ellipse(-0.34, -0.13, 0.14, 0.13), DARK),
        Shape(_ellipse(0.36, -0.13, 0.14, 0.13), DARK),
    ]


def _mushroom(c: Colour) -> list[Shape]:
    dots = [(-0.24, -0.64, 0.055), (0.02, -0.78, 0.065), (0.26, -0.62, 0.055)]
    dot = (250, 250, 244) if c != COLOURS["white"] else (206, 196, 176)
    return [
        Shape(((-0.12, -0.48), (0.12, -0.48), (0.17, 0.0), (-0.17, 0.0)), (240, 226, 198)),
        Shape((*_ellipse(0.0, -0.48, 0.48, 0.48, 180, 360), (-0.48, -0.48)), c),
        *(Shape(_ellipse(x, y, r, r), dot, weight=0.7) for x, y, r in dots),
    ]


def _rocket(c: Colour) -> list[Shape]:
    return [
        Shape(((-0.16, -0.36), (-0.36, -0.02), (-0.14, -0.12)), _shade(c, 0.72)),
        Shape(((0.16, -0.36), (0.36, -0.02), (0.14, -0.12)), _shade(c, 0.72)),
        Shape(
            ((-0.17, -0.12), (-0.19, -0.50), (-0.12, -0.80), (0.0, -1.0), (0.12, -0.80), (0.19, -0.50), (0.17, -0.12)),
            c,
        ),
        Shape(_ellipse(0.0, -0.60, 0.08, 0.08), GLASS),
        Shape(((-0.10, -0.12), (0.10, -0.12), (0.0, 0.0)), (250, 190, 70)),
    ]


def _flower(c: Colour) -> list[Shape]:
    petals = [math.radians(90 + 60 * i) for i in range(6)]
    return [
        Shape(_box(-0.03, -0.55, 0.03, 0.0), (60, 122, 62)),
        Shape(((0.0, -0.08), (0.12, -0.30), (0.30, -0.32), (0.18, -0.14)), (60, 122, 62), weight=0.8),
        *(Shape(_ellipse(0.21 * math.cos(a), -0.66 - 0.21 * math.sin(a), 0.14, 0.14), c, weight=0.9) for a in petals),
        Shape(_ellipse(0.0, -0.66, 0.11, 0.11), (120, 80, 40)),
    ]


_OBJECTS: dict[str, Callable[[Colour], list[Shape]]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "mushroom": _mushroom,
    "rocket": _rocket,
    "flower": _flower,
}


def _object_shapes(scene: Scene) -> list[Shape]:
    foot = scene.horizon + 0.40 * (1.0 - scene.horizon)
    height = scene.size * (0.82 if scene.object == "car" else 1.0)

    def to_picture(p: Point) -> Point:
        return (scene.x + p[0] * height, foot + p[1] * height)

    return [replace(s, points=tuple(map(to_picture, s.points))) for s in _OBJECTS[scene.object](COLOURS[scene.colour])]


def _sky_shapes(scene: Scene, rng: random.Random) -> list[Shape]:
    if scene.sky == "a night sky":
        stars = [(rng.uniform(0.03, 0.97), rng.uniform(0.03, scene.horizon - 0.12)) for _ in range(14)]
        moon_x = rng.choice((0.14, 0.86))
        return [Shape(_ellipse(x, y, 0.009, 0.009), (250, 246, 214), weight=0.7) for x, y in stars] + [
            Shape(_ellipse(moon_x, 0.15, 0.075, 0.075), (246, 240, 206))
        ]
    if scene.sky == "a sunset sky":
        sun_x = rng.uniform(0.1, 0.9)
        return [Shape((*_ellipse(sun_x, scene.horizon, 0.16, 0.16, 180, 360),), (254, 226, 120))]
    clouds = []
    for x, y in ((rng.uniform(0.08, 0.4), rng.uniform(0.08, 0.2)), (rng.uniform(0.6, 0.92), rng.uniform(0.08, 0.24))):
        clouds += [
            Shape(_ellipse(x + dx, y, r, r * 0.62), (252, 253, 255), weight=0.6)
            for dx, r in ((-0.07, 0.06), (0.07, 0.06), (0.0, 0.085))
        ]
    return clouds


def _ground_shapes(scene: Scene, rng: random.Random) -> list[Shape]:
    """Marks that tell the four grounds apart without colour: tufts, dots, drifts, waves."""
    colour, top = GROUNDS[scene.ground], scene.horizon
    out: list[Shape] = []
    for _ in range({"grass": 26, "sand": 34, "snow": 7, "water": 16}[scene.ground]):
        x, y = rng.uniform(0.0, 1.0), rng.uniform(top + 0.03, 0.98)
        if scene.ground == "grass":
            out.append(Shape(((x - 0.02, y), (x, y - 0.045), (x + 0.02, y)), _shade(colour, 0.72), False, 0.7))
        elif scene.ground == "sand":
            out.append(Shape(_ellipse(x, y, 0.008, 0.006), _shade(colour, 0.78), weight=0.6))
        elif scene.ground == "snow":
            out.append(Shape(_ellipse(x, y + 0.04, 0.16, 0.05, 200, 340), _shade(colour, 0.88), False, 0.6))
        else:
            wave = tuple((x + 0.02 * i - 0.08, y + 0.008 * math.sin(i * math.pi / 2)) for i in range(9))
            out.append(Shape(wave, _shade(colour, 1.35), False, 0.7))
    return out


# --- painting ---------------------------------------------------------------------------------------------------------


def _gradient(size: int, top: Colour, bottom: Colour, height: float) -> Image.Image:
    ramp = np.linspace(0.0, 1.0, max(2, round(size * height)))[:, None]
    rows = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    rows = np.concatenate([rows, np.repeat(rows[-1:], size, 0)])[:size]
    return Image.fromarray(np.repeat(rows[:, None].round().astype(np.uint8), size, 1), "RGB")


def _lines(shapes: list[Shape], size: int, width: float) -> Image.Image:
    """The outlines of shapes, later ones hiding what is behind them; "L", white on black."""
    mask = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(mask)
    for s in shapes:
        points = [(x * size, y * size) for x, y in s.points]
        if s.closed:
            draw.polygon(points, fill=0)
            points = [*points, points[0]]
        draw.line(points, fill=round(255 * s.weight), width=max(1, round(width * size)), joint="curve")
    return mask


def _plain(scene: Scene, size: int) -> Image.Image:
    rng = random.Random(scene.seed)
    sky, ground, thing = _sky_shapes(scene, rng), _ground_shapes(scene, rng), _object_shapes(scene)
    image = _gradient(size, *SKIES[scene.sky], scene.horizon)
    draw = ImageDraw.Draw(image)

    def paint(shapes: list[Shape]) -> None:
        for s in shapes:
            points = [(x * size, y * size) for x, y in s.points]
            if s.closed:
                draw.polygon(points, fill=s.fill)
            else:
                draw.line(points, fill=s.fill, width=max(1, round(0.012 * size)))

    paint(sky)
    dim = 0.62 if scene.sky == "a night sky" else 1.0
    draw.rectangle((0, round(scene.horizon * size), size, size), fill=_shade(GROUNDS[scene.ground], dim))
    paint([replace(s, fill=_shade(s.fill, dim)) for s in ground])
    paint(thing)
    return image


def _neon(scene: Scene, size: int) -> Image.Image:
    """Dark, with glowing edges that run from magenta (upper left) to cyan (lower right)."""
    rng = random.Random(scene.seed)
    sky, ground, thing = _sky_shapes(scene, rng), _ground_shapes(scene, rng), _object_shapes(scene)
    horizon = Shape(((-0.1, scene.horizon), (1.1, scene.horizon)), DARK, False)
    edges = _lines([*sky, horizon, *ground, *thing], size, 0.016)
    u = np.linspace(0.0, 1.0, size)
    ramp = np.clip((0.35 * u[None, :] + 0.65 * u[:, None]) * 1.3 - 0.15, 0, 1)[..., None]
    tint = Image.fromarray(
        (np.array((255, 30, 200)) * (1 - ramp) + np.array((20, 230, 255)) * ramp).astype(np.uint8), "RGB"
    )
    image = _gradient(size, (14, 6, 34), (30, 8, 52), scene.horizon)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, round(scene.horizon * size), size, size), fill=(8, 10, 30))
    for s in thing:
        draw.polygon([(x * size, y * size) for x, y in s.points], fill=_shade(s.fill, 0.22))
    for radius, gain in ((0.045, 1.6), (0.014, 0.9), (0.0, 1.0)):
        glow = edges.filter(ImageFilter.GaussianBlur(radius * size)) if radius else edges
        glow = glow.point(lambda v, g=gain: min(255, int(v * g)))
        image = ImageChops.screen(image, ImageChops.multiply(tint, Image.merge("RGB", (glow,) * 3)))
    return image


def _sketch(scene: Scene, size: int) -> Image.Image:
    """Dark pencil lines on warm paper, with a faint wash of the object's colour."""
    rng = random.Random(scene.seed)
    sky, ground, thing = _sky_shapes(scene, rng), _ground_shapes(scene, rng), _object_shapes(scene)
    horizon = Shape(((-0.1, scene.horizon), (1.1, scene.horizon)), DARK, False, 0.8)
    lines = _lines([*sky, horizon, *ground, *thing], size, 0.010)
    image = Image.new("RGB", (size, size), (240, 230, 208))
    draw = ImageDraw.Draw(image)
    for s in thing:
        fill = tuple((3 * p + c) // 4 for p, c in zip((240, 230, 208), s.fill, strict=True))
        draw.polygon([(x * size, y * size) for x, y in s.points], fill=fill)
    return Image.composite(Image.new("RGB", image.size, (58, 50, 48)), image, lines)


_STYLES: dict[str, Callable[[Scene, int], Image.Image]] = {"plain": _plain, "neon": _neon, "sketch": _sketch}


def draw(scene: Scene, size: int = 128) -> Image.Image:
    """The scene as an RGB picture of size x size pixels, drawn four times finer and reduced."""
    fine = max(size, 512) if size >= 512 else size * 4
    image = _STYLES[scene.style](scene, fine)
    return image if fine == size else image.resize((size, size), Image.Resampling.BOX)


# --- the data sets -------------------------------------------------------------------------------------------------


def style_set(
    style: str, count: int, seed: int, skip: frozenset[tuple[str, str, str, str]] = frozenset()
) -> list[Scene]:
    """`count` scenes of one style, no content twice and none of `skip`."""
    rng = random.Random(f"{style}/{seed}")
    keys = [k for k in all_keys() if k not in skip]
    return [place(k, rng, style) for k in rng.sample(keys, count)]


def training_scenes() -> list[Scene]:
    """The 50 neon scenes that the demo trains on."""
    return style_set("neon", 50, seed=1)


def held_out_scenes(count: int = 40) -> list[Scene]:
    """Neon scenes whose content the training set does not have."""
    return style_set("neon", count, seed=2, skip=frozenset(s.key for s in training_scenes()))


def write_pictures(folder: Path, scenes: list[Scene], size: int = 128) -> None:
    """Draws scenes as img001.png … into `folder`. What they show is for others to say."""
    for i, scene in enumerate(scenes, 1):
        save_png(folder / f"img{i:03d}.png", draw(scene, size))
