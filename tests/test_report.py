"""The report page: parsed as HTML, its pictures decoded, its curves compared with numbers worked by hand."""

from __future__ import annotations

import ast
import base64
import io
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from jinja2 import StrictUndefined, UndefinedError
from PIL import Image, ImageChops

from lora_scripts.loras.proof import UNREAD_BY
from lora_scripts.report import chart
from lora_scripts.report import environment as environments
from lora_scripts.report.data import Comparison, Kept, LoraFile, ReportData, Strength, StrengthRow
from lora_scripts.report.data_uris import data_uri
from lora_scripts.report.page import render
from lora_scripts.report.usage import diffusers_code

VOID = {"meta", "link", "img", "line", "polyline", "polygon", "br", "wbr", "input"}
SHA = "0123456789abcdef" * 4
LORA = LoraFile("cyberpunk_lora.safetensors", 1_234_567, SHA)
EVIL = "<script>alert('x')</script> & \"quoted\" </pre>"


def noise(seed: int, mode: str = "RGB", size: tuple[int, int] = (17, 9)) -> Image.Image:
    return Image.frombytes(mode, size, random.Random(seed).randbytes(size[0] * size[1] * len(mode)))


class Page(HTMLParser):
    """Tags with their attributes, text by innermost tag, and a check that everything opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str, css: str = "") -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and (not css or css in a.get("class", "").split())]

    def text(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert re.fullmatch(r"data:image/(png|webp);base64", head)
    return Image.open(io.BytesIO(base64.b64decode(body, validate=True)))


def full() -> ReportData:
    return ReportData(
        name="cyberpunk_lora",
        lora=LORA,
        verification="verified: 192 of 192 modules, largest difference 3e-8",
        facts=[("Images", "50"), ("Device", "CPU")],
        comparisons=[Comparison("a cat", 1, noise(1), noise(2)), Comparison("a dog", 2, noise(3), noise(4))],
        strengths=[StrengthRow("a fox", 3, [(0.0, noise(5)), (0.4, noise(6)), (1.0, noise(7))])],
        strength=Strength(
            0.9, "recommended strength: 0.9, which shows 96 % of it", "96 % of it", [("0.4", "style 12 %")]
        ),
        previews=[(20, [("p", noise(9)), ("q", noise(10))]), (10, [("p", noise(8))])],
        loss=[(step, 1.0 / step) for step in range(1, 51)],
        learning_rate=[(1, 0.0), (2, 2e-4), (3, 1e-4)],
        thumbnails=[(noise(11), "a house"), (noise(12, "L"), "grey")],
        config_text="lora_rank: 16\n",
        versions={"torch": "2.13.0"},
    )


def test_nothing_is_loaded_from_outside() -> None:
    html = render(full())
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "poster", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert {a.get("rel") for a in page.all("link")} == {"icon"}
    assert "@import" not in html and "url(" not in html and "http" not in html.replace("http-equiv", "")


def test_every_picture_is_there_with_its_own_pixels() -> None:
    data = full()
    expected = [data.comparisons[0].before, data.comparisons[0].after]
    expected += [data.comparisons[1].before, data.comparisons[1].after]
    expected += [image for _, image in data.strengths[0].cells]
    expected += [noise(8), noise(9), noise(10)]  # row by prompt, in the order of the steps
    expected += [image.convert("RGB") for image, _ in data.thumbnails]
    shown = [decoded(a["src"]) for a in Page(render(data)).all("img") if "src" in a]
    assert len(shown) == len(expected)
    for one, other in zip(shown, expected, strict=True):
        assert one.mode == other.mode and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_data_uri_is_lossless(mode: str) -> None:
    image = noise(3, mode)
    back = decoded(data_uri(image))
    assert ImageChops.difference(back, image.convert(back.mode)).getbbox(alpha_only=False) is None
    flat = Image.new("RGB", (64, 64), (7, 8, 9))
    assert decoded(data_uri(flat)).getpixel((5, 5)) == (7, 8, 9)


def test_a_fact_has_room_for_its_words() -> None:
    short, path, line = "5 of 50 images", "output/demo/neon/neon.safetensors", "a line of some words " * 4
    html = render(replace(full(), facts=[("a", short), ("b", path), ("c", line), ("d", "x" * 60)]))
    assert [a.get("class", "") for a in _parents_of_facts(html)[:4]] == ["", "long", "longest", "longest"]


def _parents_of_facts(html: str) -> list[dict[str, str]]:
    """What holds each fact."""
    tags = Page(html).tags
    return [before for (_, before), (tag, _) in pairwise(tags) if tag == "dt"]


def test_what_people_write_is_escaped_and_kept() -> None:
    lora = LoraFile("<b>'\".safetensors", 5, SHA)
    data = replace(
        full(),
        name=EVIL,
        lora=lora,
        verification=EVIL,
        facts=[(EVIL, EVIL)],
        comparisons=[Comparison(EVIL, 1, noise(1), noise(2))],
        strengths=[StrengthRow(EVIL, 1, [(0.5, noise(3))])],
        previews=[(1, [(EVIL, noise(4))])],
        thumbnails=[(noise(5), EVIL)],
        config_text=EVIL,
        versions={EVIL: EVIL},
    )
    html = render(data)
    page = Page(html)
    assert html.count("<script>") == 1 and "alert('x')" not in html
    assert len(page.all("b")) == len(Page(render(full())).all("b"))  # ours alone
    assert EVIL in page.text("figcaption") and EVIL in page.text("code") and EVIL in page.text("dd")
    assert "<lora:<b>'\":0.9>" in page.text("code")
    assert page.all("img")[0]["alt"] == f"Base model: {EVIL} · seed 1"


def test_usage_names_every_place_and_the_code_is_python() -> None:
    page = Page(render(full()))
    code = page.text("code")
    for text in ("models/Lora", "models/loras", "extensions/sd-webui-additional-networks/models/lora/"):
        assert text in code
    assert code.count("<lora:cyberpunk_lora:0.9>") == 2  # as measured
    assert any('pipe.set_adapters("lora", 0.9)' in text for text in code)
    assert any("pipe(prompt=prompt)" in text for text in code)  # FLUX.2's pipelines take a picture first
    assert "Recommended strength: 0.9, which shows 96 % of it. On average over the prompts:" in page.text("p")
    assert "style 12 %" in page.text("dd")
    assert Page(render(replace(full(), strength=None))).text("code").count("<lora:cyberpunk_lora:1>") == 2


def test_a_lora_that_edits_is_used_with_a_picture() -> None:
    shown = replace(full().comparisons[0], made_from=[noise(30)])
    page = Page(render(replace(full(), comparisons=[shown, *full().comparisons[1:]])))
    assert page.all("img")[0]["alt"] == f"Made from: {shown.prompt}"
    assert "ReferenceLatent" in page.text("b")
    (code,) = (text for text in page.text("code") if "load_lora_weights" in text)
    assert 'pipe(prompt=prompt, image=load_image("path/to/the/picture.png"))' in code and ast.parse(code)
    assert "ReferenceLatent" not in Page(render(full())).text("b")
    seeing = Page(render(replace(full(), edit_node="ShowIt", comparisons=[shown, *full().comparisons[1:]]))).text("b")
    assert "ShowIt" in seeing and "ReferenceLatent" not in seeing


def test_programs_that_do_not_read_the_file_are_left_out_of_how_to_use_it() -> None:
    lokr, oft = (Page(render(replace(full(), unread_by=UNREAD_BY[kind]))) for kind in ("lokr", "oft"))
    assert not any("load_lora_weights" in text or "additional-networks" in text for text in lokr.text("code"))
    assert "WebUI (A1111, Forge, SD.Next)" in lokr.text("h3") and "diffusers" not in lokr.text("h3")
    assert "WebUI (A1111)" in oft.text("h3") and "models/loras" in oft.text("code")
    newer = Page(render(replace(full(), unread_by=["A1111", "additional-networks", "ComfyUI"])))
    assert "WebUI (Forge, SD.Next)" in newer.text("h3") and "ComfyUI" not in newer.text("h3")
    assert not any("additional-networks" in text or "models/loras" in text for text in newer.text("code"))


def test_what_the_lora_does_uncalled_stands_beside_the_base() -> None:
    kept = Kept("without zibbo: pictures of other things change", True, [Comparison("a tree", 4, noise(20), noise(21))])
    page = Page(render(replace(full(), kept=kept)))
    assert "Without its word" in page.text("h2") and "Without zibbo: pictures of other things change." in page.text("p")
    assert len(page.all("img")) == len(Page(render(full())).all("img")) + 2
    assert {SHA, SHA[:10], "1.2 MB"} <= set(page.text("dd"))
    prompt = 'it\'s "neon" \\ 霓虹\n'
    for base, pipeline, call in (
        ("", "", "DiffusionPipeline.from_pretrained('path/to/the/base/model')"),
        ("m/v1.safetensors", "StableDiffusionPipeline", "StableDiffusionPipeline.from_single_file('m/v1.safetensors')"),
        ("models/flux.safetensors", "", "DiffusionPipeline.from_pretrained('path/to/the/base/model')"),
        ("a/b", "StableDiffusionPipeline", "DiffusionPipeline.from_pretrained('a/b')"),
    ):
        program = ast.parse(diffusers_code(LORA, prompt, 1.0, base, pipeline))
        assert ast.unparse(program.body[1]) == f"pipe = {call}"
        assert ast.unparse(program.body[0]) == f"from diffusers import {call.partition('.')[0]}"
    values = {node.targets[0].id: node.value for node in program.body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(values["prompt"]) == prompt


def test_loss_points_as_worked_by_hand() -> None:
    """Losses 4, 2, 2, 1 at steps 10 … 40: the frame is 0 … 4.24, each 10 steps are 333.3 units."""
    page = Page(render(replace(full(), loss=[(10, 4.0), (20, 2.0), (30, 2.0), (40, 1.0)], learning_rate=[])))
    raw = page.all("polyline", "raw")[0]["points"]
    # 360 * (1 - y / 4.24)
    assert raw == "0.0,20.4 333.3,190.2 666.7,190.2 1000.0,275.1"
    # Factor 1 - 2/6 = 0.667; averages corrected by 1 - f^t: 4, 2.8003, 2.42142…, 1.83120…
    values = [
        (float(x), float(y)) for x, y in (p.split(",") for p in page.all("polyline", "smooth")[0]["points"].split())
    ]
    f = 0.667
    weights = [[f**age for age in range(n)] for n in (1, 2, 3, 4)]
    losses = [4.0, 2.0, 2.0, 1.0]
    for n, (_, y) in enumerate(values, 1):
        mean = sum(w * v for w, v in zip(weights[n - 1], reversed(losses[:n]), strict=True)) / sum(weights[n - 1])
        assert y == pytest.approx(360 * (1 - mean / 4.24), abs=0.06)
    assert "factor 0.667" in " ".join(page.text("span"))


def test_a_hundred_thousand_points_become_six_hundred_bins() -> None:
    loss = [(step, 1.0 + (step % 2)) for step in range(1, 100_001)]
    page = Page(render(replace(full(), loss=loss, learning_rate=loss)))
    for line in page.all("polyline"):
        assert 500 <= len(line["points"].split()) <= 600
    assert len(page.all("polygon", "band")) == 1
    assert len(render(replace(full(), loss=loss))) < 400_000


def test_bins_keep_range_and_mean() -> None:
    points = [(float(i), float(v)) for i, v in enumerate([5, 1, 3, 8, 2, 2, 7])]
    assert chart.binned(points, 3) == [chart.Bin(1, 1, 3, 5), chart.Bin(4, 2, 4, 8), chart.Bin(6, 7, 7, 7)]
    assert chart.binned(points, 7) == [chart.Bin(x, y, y, y) for x, y in points]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3, 47, [10, 20, 30, 40]),
        (0, 2.1e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert chart.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    "loss",
    [
        [],
        [(1, 0.5)],
        [(1, 0.5), (2, 0.5)],
        [(1, 0.0), (2, 0.0)],
        [(1, 0.5), (2, math.nan), (3, math.inf), (4, 0.25)],
        [(1, -1.0), (2, -2.0)],
        [(1, 2.301), (2, 2.299), (3, 2.3)],
        [(1, 0.1)] * 3,
    ],
)
def test_odd_curves_are_drawn_inside_the_frame_or_left_out(loss: list[tuple[int, float]]) -> None:
    page = Page(render(replace(full(), loss=loss, learning_rate=[])))
    assert bool(page.all("polyline")) == (len(loss) > 1)
    for line in page.all("polyline"):
        for point in line["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= chart.WIDTH and 0 <= y <= chart.HEIGHT


def test_empty_parts_are_left_out() -> None:
    page = Page(render(ReportData("bare", LORA, "verified: 1 of 1 modules, largest difference 0")))
    assert page.text("h1") == ["bare"]
    assert page.text("h2") == ["Use it", "The file and the run"]
    assert Page(render(full())).text("h2") == [
        *("Before and after", "How strong", "Use it", "While it learned", "Loss", "Learning rate", "Trained on"),
        "The file and the run",
    ]


def test_at_most_twelve_thumbnails() -> None:
    data = replace(full(), thumbnails=[(noise(i), f"caption {i}") for i in range(15)])
    captions = Page(render(data)).text("figcaption")
    assert [c for c in captions if c.startswith("caption")] == [f"caption {i}" for i in range(12)]


def test_a_page_is_html_of_today() -> None:
    assert render(full()).startswith("<!doctype html>")


def test_every_template_escapes_and_no_name_may_be_missing() -> None:
    """What the engine does for all of them: there is no place left where somebody could forget it."""
    for environment in (environments._html(), environments._markdown()):
        assert environment.undefined is StrictUndefined
    page = environments._html().from_string('{{ text }}<p title="{{ text }}">{{ part.name | breakable }}</p>')
    assert page.render(text=EVIL, part=LORA).startswith("&lt;script&gt;alert(&#39;x&#39;)")
    assert EVIL in Page(page.render(text=EVIL, part=LORA)).all("p")[0]["title"]
    with pytest.raises(UndefinedError):
        page.render(text="", part=object())
    line = environments._markdown().from_string("| {{ text }} | {{ text | yaml }} | {{ text | verbatim }} |")
    assert line.render(text='a|b <c>\n"') == '| a\\|b &lt;c> " | "a|b <c>\\n\\"" | a|b <c>\n" |'


def test_templates_leave_no_way_around_the_escapes() -> None:
    """`safe` stands in none of them, nor is escaping switched off."""
    folder = Path(environments.__file__).parent / "templates"
    for path in folder.iterdir():
        assert not re.search(r"\|\s*safe|autoescape", path.read_text("utf-8")), path


def test_a_lora_that_harms_is_not_recommended() -> None:
    page = Page(render(replace(full(), warning="this LoRA is worse than the base")))
    assert any("this LoRA is worse than the base" in text for text in page.text("p"))
    assert not any("into your WebUI's models/Lora and write" in text for text in page.text("p"))
    assert any("into your WebUI's models/Lora and write" in text for text in Page(render(full())).text("p"))
