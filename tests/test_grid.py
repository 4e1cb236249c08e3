"""`lora-scripts grid`: its axes, that a cell is drawn once and never twice, the page, and what the measures say."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from conftest import Finished, offline
from lora_scripts.cli import main
from lora_scripts.config.load import dump_config, load_config
from lora_scripts.data.scan import scan
from lora_scripts.errors import UserError
from lora_scripts.families.base import Sampling
from lora_scripts.grid import measures
from lora_scripts.grid.axes import NAMES, plan
from lora_scripts.grid.cells import Cell
from lora_scripts.grid.sources import GridOptions, find_sources
from lora_scripts.losses.diffusion import alphas_cumprod
from lora_scripts.report import sheet

QUICK = ["--steps", "1", "--cfgs", "2", "--size", "64", "--precision", "fp32", "--device", "cpu"]


def labels(**several: int) -> dict[str, list[str]]:
    return {name: [f"{name} {i}" for i in range(several.get(name, 1))] for name in NAMES}


# --- pure -------------------------------------------------------------------------------------------------------------


def test_axes_are_what_has_several_values() -> None:
    made = plan(labels(strength=4, prompt=2, lora=3))
    assert [axis.name for axis in made.axes] == ["prompt", "LoRA", "strength"]
    assert len(made.points) == 24 and made.points[1, 2, 3].lora == 2 and made.points[1, 2, 3].seed == 0
    blocks = [(block, [(row, places) for row, places in rows]) for block, rows in made.rows()]
    assert [block for block, _ in blocks] == ["prompt 0", "prompt 1"]
    assert blocks[1][1][2] == ("lora 2", [(1, 2, 0), (1, 2, 1), (1, 2, 2), (1, 2, 3)])
    alone = list(plan(labels(seed=2)).rows())
    assert alone == [(None, [(None, [(0,), (1,)])])]


def test_too_many_axes_and_none_are_refused_with_a_mend() -> None:
    with pytest.raises(
        UserError, match=r"at most three axes, not 4: 2 prompts, 2 LoRAs, 2 seeds, 3 strengths; give one"
    ):
        plan(labels(prompt=2, lora=2, seed=2, strength=3))
    with pytest.raises(UserError, match="nothing to compare"):
        plan(labels())


def test_a_cells_name_is_made_of_all_that_it_depends_on() -> None:
    whole: dict[str, Any] = {
        "base": "a", "vae": "", "loras": (("b", 0.5),), "prompt": "p", "negative": "", "seed": 1, "cfg": 7.0,
        "steps": 20, "size": (64, 64), "scheduler": "DDIM", "settings": ("fp32", "epsilon", False, 1),
        "references": (("a.png", "e"),),
    }  # fmt: skip
    others = {
        "base": "c", "vae": "d", "loras": (("b", 0.6),), "prompt": "q", "negative": "n", "seed": 2, "cfg": 7.5,
        "steps": 21, "size": (64, 72), "scheduler": "LCM", "settings": ("bf16", "epsilon", False, 1),
        "references": (),
    }  # fmt: skip
    assert whole.keys() == others.keys() == set(Cell.__dataclass_fields__)
    digests = [Cell(**whole).digest, *(Cell(**{**whole, key: value}).digest for key, value in others.items())]
    assert len(set(digests)) == len(digests) and Cell(**whole).digest == digests[0]


# --- measures ---------------------------------------------------------------------------------------------------------


def flat(colour: tuple[int, int, int], noise: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(noise).integers(-30, 31, (64, 64, 3)) + np.array(colour)
    return measures.as_pixels(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def test_likeness_is_0_for_the_base_and_rises_towards_the_style(family: Any) -> None:
    style = measures.Style([measures.look(family, flat((200, 40, 60), i)) for i in range(3)])
    base = measures.look(family, flat((60, 180, 200), 9))
    steps = [measures.look(family, (1 - s) * flat((60, 180, 200), 9) + s * flat((200, 40, 60), 8)) for s in (0, 0.5, 1)]
    told = [style.likeness(one, base) for one in steps]
    assert told[0] == 0 and told[0] < told[1] < told[2] and abs(told[2] - 1) < 0.2  # type: ignore[operator]
    away = measures.look(family, flat((0, 255, 255), 9))
    assert (style.likeness(away, base) or 0) < 0
    assert style.likeness(base, style.looks[0]) is None  # a base that draws in that style already


def test_the_nearest_training_picture_is_the_same_one(family: Any) -> None:
    pictures = []
    for corner in range(4):
        image = Image.new("RGB", (64, 64), "white")
        image.paste(
            (20, 20, 20), (32 * (corner % 2), 32 * (corner // 2), 32 * (corner % 2) + 32, 32 * (corner // 2) + 32)
        )
        pictures.append(measures.look(family, measures.as_pixels(image)))
    for number, one in enumerate(pictures):
        assert measures.nearest(one, pictures) == (number, pytest.approx(1.0, abs=1e-5))


@torch.no_grad()
def test_the_prompts_gain_is_the_drop_of_the_denoising_error(family: Any) -> None:
    """Against a second way to compute it: level by level, with the noise written out."""
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    signal = alphas_cumprod().sqrt()
    errors = []
    for text in ("", "a house"):
        states, total = family.encode_text([text])["states"], 0.0
        for i, t in enumerate(t for t in measures.TIMES for _ in range(measures.NOISES)):
            noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i))
            x = signal[t] * latents + (1 - signal[t] ** 2).sqrt() * noise
            total += (family.predict(x[None], torch.tensor([t]), states)[0] - noise).square().mean().item()
        errors.append(total)
    expected = (errors[0] - errors[1]) / errors[0]
    assert measures.prompt_gain(family, latents, "(a house:1.2)") == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_differences(family: Any) -> None:
    black, white = (Image.new("RGB", (64, 64), colour) for colour in ("black", "white"))
    assert measures.pixel_difference(black, white) == 1 and measures.pixel_difference(white, white) == 0
    one, other = (measures.look(family, measures.as_pixels(image)) for image in (black, white))
    assert measures.latent_difference(one, other) > 0 == measures.latent_difference(one, one)


def test_a_runs_own_cfg_and_steps_and_each_file_once(
    base: Path, finished: Finished, tmp_path: Path, never_loaded: None
) -> None:
    """Without torch: from the run's config, unless the command says; the final file lies there twice."""
    folder = tmp_path / "neon"
    folder.mkdir()
    keys = ["sample_cfg=4", "sample_steps=9", "sample_prompts=[a house]"]
    config = load_config(finished.folder / "config.yaml", keys)
    (folder / "config.yaml").write_text(dump_config(config))
    for name in ("neon", "neon-best"):
        shutil.copyfile(finished.lora, folder / f"{name}.safetensors")
    shutil.copyfile(sorted(finished.folder.glob("*step*.safetensors"))[0], folder / "neon-step000010.safetensors")
    options = GridOptions(output=tmp_path / "g", checkpoints=(str(folder),))
    found = find_sources(options)
    assert (found.cfgs, found.steps) == ((4.0,), 9)
    assert [one.label for one in found.checkpoints if one] == ["neon-step000010", "neon = neon-best"]
    assert found.checkpoints[-1] is not None and found.checkpoints[-1].path.stem == "neon"
    asked = find_sources(replace(options, cfgs=(1.0, 2.0), steps=3))
    assert (asked.cfgs, asked.steps) == ((1.0, 2.0), 3)
    assert [line.prompt for line in found.prompts] == ["a house"]
    # A run of the nine keys names no prompts: as its previews, two captions of its data.
    (folder / "config.yaml").write_text(dump_config(load_config(folder / "config.yaml", ["sample_prompts=[]"])))
    captions = [sample.caption for sample in scan(config.train_data_dir)]
    assert [line.prompt for line in find_sources(options).prompts] == list(dict.fromkeys(captions))[:2]


def test_a_name_is_broken_at_its_signs() -> None:
    font = ImageFont.load_default(15)
    assert sheet._wrapped("neon-step000100", font, int(font.getlength("neon-step00010"))) == ["neon-", "step000100"]
    assert "".join(sheet._wrapped("x" * 40, font, 60)) == "x" * 40


# --- the command ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The pictures and the headings of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[dict[str, str]] = []
        self.heads: list[str] = []
        self.spans: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.spans += filter(None, [values.get("rowspan")])
        if values.get("class") == "zoom":
            self.cells.append(values)
        self.inside = self.inside if tag == "bdi" else tag  # what a person wrote, inside of a heading

    def handle_endtag(self, tag: str) -> None:
        self.inside = "th" if tag in ("span", "bdi") else ""

    def handle_data(self, data: str) -> None:
        if self.inside == "th":
            self.heads.append(data)


def grid(*argv: str) -> int:
    with offline():
        return main(["grid", *argv, *QUICK])


@pytest.fixture(scope="module")
def drawn(base: Path, finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts, three checkpoints, three strengths; base and training pictures from the run's config."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "prompts.txt").write_text("a house\n# no\na tree --n ugly --s 2\n")
    words = ["--prompts", str(folder / "prompts.txt"), "--output", str(folder / "g"), "--strengths", "0", "0.5", "1"]
    assert grid("--checkpoints", str(finished.folder), *words) == 0
    return folder / "g"


def test_every_cell_is_drawn_once_and_strength_0_is_the_base(drawn: Path, base: Path, family: Any) -> None:
    told = json.loads((drawn / "grid.json").read_text())
    assert [axis["name"] for axis in told["axes"]] == ["prompt", "checkpoint", "strength"]
    assert [len(axis["labels"]) for axis in told["axes"]] == [2, 3, 3] and told["axes"][1]["labels"][-1] == "final"
    cells = told["cells"]
    assert len(cells) == 18
    for prompt in ("a house", "a tree"):
        shared = {cell["file"] for cell in cells if cell["prompt"] == prompt and cell["strength"] == 0}
        (only,) = shared
        steps, negative = (2, "ugly") if prompt == "a tree" else (1, "")
        plain = family.generate(prompt, 42, Sampling(steps, 2.0, negative, (64, 64)))
        assert np.array_equal(np.asarray(Image.open(drawn / only)), np.asarray(plain))
    # The last checkpoint is the final file of the run, byte for byte or nearly: it may share its cells.
    assert len({cell["file"] for cell in cells}) in (10, 14)
    assert {p.name for p in (drawn / "cells").glob("*.png")} == {Path(cell["file"]).name for cell in cells}


def test_the_page_shows_all_cells_with_their_parameters(drawn: Path) -> None:
    text = (drawn / "grid.html").read_text("utf-8")
    page = Page(text)
    assert all((drawn / cell["data-file"]).is_file() for cell in page.cells)
    # Three checkpoints at two strengths, and the base once, beside all three: of each of two prompts.
    titles = [cell["data-title"] for cell in page.cells]
    assert len(titles) == 14 and [titles[i] for i in (0, 7)] == [f"prompt a {x}, strength 0" for x in ("house", "tree")]
    assert page.spans == ["3", "3"] and all("checkpoint " in title for title in titles if not title.endswith(" 0"))
    assert {"0", "0.5", "1", "final"} <= set(page.heads)
    assert "Seed: 42" in page.cells[4]["data-text"] and "<lora:" in page.cells[4]["data-text"]
    assert "likeness to the training style\t" in page.cells[4]["data-values"]
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(["']?https?:""", text)
    with Image.open(drawn / "grid.png") as sheet:
        assert sheet.width > 3 * 64 and sheet.height > 6 * 64
        colours = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
        # All but 14 pictures of 64 px is paper and ink: grey, with edges that are as grey.
        assert abs(int((np.ptp(colours, axis=1) > 12).sum()) - 14 * 64**2) < 2 * 64**2


def test_prompts_with_options_of_their_own_are_told(drawn: Path, finished: Finished, tmp_path: Path) -> None:
    """The page told the first picture's size and the option's steps for all; the same words had one label."""
    assert "1 … 2 steps" in (drawn / "grid.html").read_text("utf-8")
    (tmp_path / "prompts.txt").write_text("a house\na house --w 72 --n ugly --s 1\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "g"), "--strengths", "1"]
    assert grid("--loras", str(finished.lora), *words, "--no-measures") == 0
    text = (tmp_path / "g" / "grid.html").read_text("utf-8")
    assert "64 × 64, 72 × 64" in text and ", 1 step<" in text
    assert Page(text).heads == ["a house", "a house --n ugly --w 72 --s 1"]


def test_measures_are_there_for_each_checkpoint_and_strength(drawn: Path) -> None:
    rows = json.loads((drawn / "grid.json").read_text())["rows"]
    assert [row["loras"] for row in rows].count([]) == 1 and rows[0]["pixels"] == 0 and rows[0]["style"] in (0, None)
    assert len(rows) == 7 and all(row["pictures"] == 2 for row in rows)  # the base's, too, however often they stand
    assert all(row["pixels"] > 0 and row["nearest"].endswith(".png") for row in rows[1:])


def test_a_grid_goes_on_where_it_was_stopped(
    drawn: Path, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells are found by what they depend on, also in another grid; one that is cut short is drawn again, the same."""
    output = tmp_path / "g"
    shutil.copytree(drawn, output)
    cells = sorted((output / "cells").glob("*.png"))
    before = {path: path.read_bytes() for path in cells}
    stamps = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].write_bytes(before[cells[0]][:200])
    cells[1].unlink()
    prompts = drawn.parent / "prompts.txt"
    words = ["--prompts", str(prompts), "--output", str(output), "--strengths", "0", "1", "0.5"]
    assert grid("--checkpoints", str(finished.folder), *words) == 0
    assert f"2 pictures to draw; {len(cells) - 2} were there already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in cells} == before
    assert all(path.stat().st_mtime_ns == stamps[path] for path in cells[2:])
    assert grid("--checkpoints", str(finished.folder), *words, "--json") == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["pictures"], result["drawn"]) == (18, 0) and Path(result["page"]) == output / "grid.html"
    assert result["rows"] == json.loads((output / "grid.json").read_text())["rows"]
    events = [json.loads(line) for line in shown.err.splitlines()]
    assert events[0] == {"event": "note", "text": f"0 pictures to draw; {len(cells)} were there already"}
    assert events[-1]["event"] == "progress" and events[-1]["what"] == "measures"


def test_loras_seeds_and_cfgs_are_axes_too(base: Path, finished: Finished, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copyfile(finished.folder / sorted(finished.folder.glob("*step*.safetensors"))[0].name, other)
    (tmp_path / "p.txt").write_text("a house --w 64 --h 128\n")
    argv = ["--base", str(base), "--loras", str(finished.lora), str(other), "--prompts", str(tmp_path / "p.txt")]
    more = ["--strengths", "-0.5", "--seeds", "1", "2", "--output", str(tmp_path / "g"), "--no-measures"]
    assert main(["grid", *argv, *more, *QUICK[:2], "--cfgs", "2", "3", *QUICK[4:]]) == 0
    told = json.loads((tmp_path / "g" / "grid.json").read_text())
    assert [axis["name"] for axis in told["axes"]] == ["LoRA", "seed", "cfg"] and told["rows"] == []
    assert len({cell["file"] for cell in told["cells"]}) == 8
    assert {tuple(cell["size"]) for cell in told["cells"]} == {(64, 128)}
    images = [np.asarray(Image.open(tmp_path / "g" / cell["file"])) for cell in told["cells"]]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(images, 2))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--base", "base.safetensors", "--prompts", "p.txt"], "there is no LoRA to draw"),
        (["--loras", "a.safetensors", "--prompts", "p.txt"], "there is no base to draw with; name one with --base"),
        (["--base", "base.safetensors", "--loras", "a.safetensors"], "there are no prompts to draw"),
        (["--base", "base.safetensors", "--loras", "none.safetensors", "--prompts", "p.txt"], "--loras: none"),
        (
            ["--base", "base.safetensors", "--checkpoints", "empty", "--prompts", "p.txt"],
            "empty: --checkpoints: there is",
        ),
        (["--base", "base.safetensors", "--loras", "a.safetensors", "--prompts", "q.txt"], "q.txt: --d in 'a'"),
        (
            ["--base", "base.safetensors", "--loras", "a.safetensors", "--prompts", "r.txt"],
            "r.txt: 'b <LoRA:x:1>' calls",
        ),
        (
            ["--base", "base.safetensors", "--loras", "a.safetensors", "--prompts", "p.txt", "--strengths", "1", "1.0"],
            "--strengths: 1 is given twice",
        ),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    base: Path,
    finished: Finished,
    tmp_path: Path,
    never_loaded: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("base.safetensors").write_bytes(base.read_bytes())
    Path("a.safetensors").write_bytes(finished.lora.read_bytes())
    Path("p.txt").write_text("a\n")
    Path("q.txt").write_text("a --d 1\nb <lora:x:1>\n")
    Path("r.txt").write_text("b <LoRA:x:1>\n")
    assert grid(*argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
