"""Style and content against strength, by the measures of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from lora_scripts.data.image import apply_view
from lora_scripts.families.base import PictureFamily
from lora_scripts.grid import measures
from lora_scripts.report.data import Strength
from lora_scripts.run.after.copies import still_there
from lora_scripts.train.feed import Feed
from lora_scripts.train.strength import LITTLE, Point, averaged, recommended
from lora_scripts.units import percent

MOST = 16
"""Training pictures that stand for the style, spread evenly over all."""


def measure(family: PictureFamily, feed: Feed, drawn: Mapping[tuple[int, float], Image.Image]) -> Strength | None:
    """`drawn`: (number of the prompt, strength) -> picture; None where the base draws in the style already, or no
    training picture can be read any more."""
    own = [p for p in feed.pictures if not p.of_class]
    count = min(len(own), MOST)
    chosen = [own[i * len(own) // count] for i in range(count)]
    there = [(image, p.views[0]) for p in chosen if (image := still_there(p.sample.path)) is not None]
    if not there:
        return None
    style = measures.Style([measures.look(family, apply_view(image, view)) for image, view in there])
    strengths = sorted({strength for number, strength in drawn if number == 0})
    rows = [row for n in sorted({n for n, _ in drawn}) if (row := _row(family, style, drawn, n, strengths))]
    if not rows:
        return None
    points = averaged(rows)
    best = recommended(points)
    told = [(f"{p.strength:g}", note(p)) for p in points]
    full, prompts = points[-1], len(rows)
    return Strength(best.strength, words(best, full, prompts), reason(best, full, prompts), told)


def _row(
    family: PictureFamily,
    style: measures.Style,
    drawn: Mapping[tuple[int, float], Image.Image],
    number: int,
    strengths: Sequence[float],
) -> list[Point]:
    """Of one prompt; empty if it was not drawn at every strength, or is in the style without the LoRA."""
    if any((number, strength) not in drawn for strength in strengths):
        return []
    looks = [measures.look(family, measures.as_pixels(drawn[number, strength])) for strength in strengths]
    points = []
    for strength, one in zip(strengths, looks, strict=True):
        likeness = style.likeness(one, looks[0])
        if likeness is None:
            return []
        points.append(Point(strength, likeness, measures.composition(one, looks[0])))
    return points


def reason(best: Point, full: Point, prompts: int) -> str:
    """Why it is recommended, in words that stand alone."""
    measured = f"measured by the run on {prompts} prompts"
    if full.style < LITTLE:
        return f"even it shows little of the style, {measured}"
    if best.strength == full.strength:
        return f"weaker ones lose part of the style, {measured}"
    return f"{_share(best, full)} of the style of full strength, {measured}"


def words(best: Point, full: Point, prompts: int) -> str:
    """What is recommended, and why."""
    share = _share(best, full)
    text = f"recommended strength: {best.strength:g}, "
    if full.style < LITTLE:
        return text + f"and even that shows little of the style (measured on {prompts} prompts)"
    if best.strength == full.strength:
        return text + f"for weaker ones lose part of the style (measured on {prompts} prompts)"
    return text + f"which shows {share} of the style of full strength (measured on {prompts} prompts)"


def _share(best: Point, full: Point) -> str:
    return percent(best.style / full.style)


def note(point: Point) -> str:
    """Beside a strength."""
    return f"style {percent(point.style)}, the base's composition {percent(point.content)}"
