"""Which strength is recommended, of curves whose answer is known."""

from __future__ import annotations

import pytest

from lora_scripts.report.chinese import translated
from lora_scripts.run.after import strengths
from lora_scripts.train.strength import Point, at, averaged, recommended


def curve(*styles: float) -> list[Point]:
    return [Point(s, style, 1 - s / 2) for s, style in zip((0.0, 0.4, 0.6, 0.8, 1.0), styles, strict=True)]


def test_between_measured_strengths_lines_are_straight() -> None:
    point = at(curve(0, 0.1, 0.2, 0.6, 0.7), 0.7)
    assert (point.strength, point.style, point.content) == (0.7, pytest.approx(0.4), pytest.approx(0.65))
    assert at(curve(0, 0.1, 0.2, 0.6, 0.7), 0.8).style == 0.6


def test_the_weakest_that_shows_the_style_is_recommended() -> None:
    assert recommended(curve(0, 0.1, 0.2, 0.6, 1.0)).strength == 1.0  # a style that shows late
    assert recommended(curve(0, 0.2, 0.5, 0.9, 1.0)).strength == 0.9  # 0.95 of it, between two measured ones
    assert recommended(curve(0, 0.5, 0.97, 0.99, 1.0)).strength == 0.6
    assert recommended(curve(0, 0.8, 1.1, 1.1, 1.0)).strength == 0.5  # full strength is past the style
    assert recommended(curve(0, -0.1, -0.2, -0.3, -0.3)).strength == 1.0  # nothing to go by
    nothing = curve(0, -0.001, 0.011, 0.004, 0.011)  # as measured of a LoRA that had learnt nothing: chance
    assert recommended(nothing).strength == 1.0
    for said in (strengths.words(nothing[-1], nothing[-1], 2), strengths.reason(nothing[-1], nothing[-1], 2)):
        assert "little of the style" in said and translated(said) is not None


def test_prompts_are_averaged() -> None:
    both = averaged([curve(0, 0, 0, 0, 1), curve(0, 1, 1, 1, 1)])
    assert [p.style for p in both] == [0, 0.5, 0.5, 0.5, 1]
