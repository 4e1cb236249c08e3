"""What is seen on the pages: rows and levels that are told apart, units, colours, paper, both languages."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from lora_scripts.check.verdict import summary
from lora_scripts.cli import label
from lora_scripts.label.command import Labelled
from lora_scripts.report import chart, chinese
from lora_scripts.report.check_page import CheckData
from lora_scripts.report.check_page import render as check_page
from lora_scripts.report.page import render
from test_report import Page, full, noise

ASSETS = resources.files("lora_scripts.report") / "assets"


def test_two_previews_of_one_prompt_are_two_rows() -> None:
    """As with two seeds. A picture that can no longer be read is missing in its own row alone."""
    previews = [(10, [("p", None), ("p", noise(2))]), (20, [("p", noise(3)), ("p", noise(4))])]
    html = render(replace(full(), previews=previews)).partition("While it learned")[2].partition("<section")[0]
    strips = [re.findall('alt="([^"]*)"', strip) for strip in html.split('class="strip"')[1:]]
    assert strips == [["Step 20: p"], ["Step 10: p", "Step 20: p"]]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.0, 0.2, 0.4], ["0", "0.2", "0.4"]),
        ([0.447, 0.4475, 0.448], ["0.447", "0.4475", "0.448"]),  # of a loss that hardly moves
        ([5e-5, 1e-4, 1.5e-4], ["5e-5", "1e-4", "1.5e-4"]),
        ([1200.5, 1201.0], ["1,200.5", "1,201.0"]),
    ],
)
def test_each_level_of_a_chart_is_named_as_it_is(levels: list[float], expected: list[str]) -> None:
    assert chart.labels(levels) == expected
    view = chart.Frame(0, 1, levels[0], levels[-1])
    names = [mark.text for mark in chart.figure("f", view, []).up]
    assert len(set(names)) == len(names)


def test_the_size_is_that_which_inspect_tells() -> None:
    lora = replace(full().lora, size=151_000_000)
    assert "144 MB" in Page(render(replace(full(), lora=lora))).text("dd")


def test_the_styles_can_be_read_in_the_dark_and_on_paper() -> None:
    """Text on its ground at 4.5 to 1 at least, as WCAG asks, and backgrounds that tell something are printed."""
    for name, light_on in (("light", False), ("dark", True)):
        colours = _colours(dark=light_on)
        for ink in ("ink", "soft", "accent", "error"):
            for ground in ("paper", "card"):
                assert _contrast(colours[ink], colours[ground]) >= 4.5, (name, ink, ground)
    css = (ASSETS / "page.css").read_text("utf-8")
    assert not re.findall(r"[^-]color: #(?!fff)[0-9a-f]{6}", css)  # else it is the same on both grounds
    check = (ASSETS / "check.css").read_text("utf-8").partition("@media print")[2]
    assert re.search(r"\.thumb.*print-color-adjust: exact", check)


def test_a_tall_picture_of_a_finding_is_no_higher_than_others() -> None:
    """A page of a webtoon, 400 x 4000 px, took a screen for itself: the least width of its name was its own, too."""
    check = (ASSETS / "check.css").read_text("utf-8")
    assert ".row .thumb { width: min(100%, 12rem * var(--ratio)); }" in check


def _colours(*, dark: bool) -> dict[str, str]:
    light, _, night = (ASSETS / "page.css").read_text("utf-8").partition("@media (prefers-color-scheme: dark)")
    found = r"--(\w+): #([0-9a-f]{3,6});"
    return dict(re.findall(found, light)) | (dict(re.findall(found, night)) if dark else {})


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        whole = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
        parts = [int(whole[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_no_heading_is_under_the_button_of_the_language() -> None:
    """It ends 2.75 rem below the top, and a long name goes as far to the right as it does."""
    css = (ASSETS / "page.css").read_text("utf-8")
    (room,) = re.findall(r"main { max-width: 76rem; margin: 0 auto; padding: clamp\(([\d.]+)rem", css)
    assert float(room) > 2.75


def test_a_fact_that_a_person_wrote_stays_in_chinese() -> None:
    html = check_page(CheckData("pictures", summary(1, 1, []), [("pictures", "1"), ("folder", "pictures")], []))
    assert '<dt>folder</dt><dd translate="no">pictures</dd>' in html and "<dd>1</dd>" in html
    assert chinese.missing(html) == []


def test_one_picture_is_one() -> None:
    assert summary(1, 1, []).startswith("1 picture, 1 with a caption: ")
    assert summary(2, 1, []).startswith("2 pictures, 1 with a caption: ")
    for unread in (0, 1):
        assert chinese.translated(summary(1, 1, [], unread))
    labelled = Labelled(Path("metadata.csv"), pictures=1, captioned=1, asked=0, written=0, elsewhere={}, faults=())
    assert list(label.words(labelled)) == ["the picture has a caption already; --overwrite makes it anew"]
    assert "1 of 1 picture has one now" in next(label.words(replace(labelled, asked=1, written=1)))


def test_the_words_beside_an_enlarged_picture_are_in_both_languages() -> None:
    assert "i ? part : said(part)" in (ASSETS / "grid.js").read_text("utf-8")
    for words in ("difference from the base", "likeness to the training style", "prompt found"):
        assert chinese.translated(words)
