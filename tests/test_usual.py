"""How pictures are drawn where nobody says: by each family's own numbers, which keys and options go before; and the
prompts that a text encoder does not read to their end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import flow_checks
import tiny
import tiny_flux1
import tiny_qwen21
import tiny_sd3
import tiny_zimage
from conftest import offline
from lora_scripts.cli import main
from lora_scripts.config.prompt_line import PromptLine
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.events import Note, ignore
from lora_scripts.families.facts import Drawing
from lora_scripts.families.table import by_name, drawing
from lora_scripts.generate.png import read_infotext
from lora_scripts.grid.sources import GridOptions, find_sources
from lora_scripts.run import overview, previews
from lora_scripts.run.captions_first import captions_first
from lora_scripts.run.configs import load_config
from lora_scripts.run.preflight import Split
from lora_scripts.run.previews import previews_of


def numbers(path: Path) -> tuple[int, float]:
    """(steps, cfg) of a base."""
    return drawing(path)[:2]


@pytest.mark.parametrize(
    ("name", "steps", "cfg"),
    [
        ("sd1", 20, 7.0),
        ("sd2", 20, 7.0),
        ("sdxl", 20, 7.0),
        ("flux2", 28, 4.0),
        ("flux2_dev", 28, 4.0),
        ("flux3", 28, 3.5),
        ("qwen_image", 28, 4.0),
        ("qwen_image21", 28, 1.0),
        ("krea2", 28, 4.5),
        ("zimage", 28, 5.0),
        ("anima", 30, 4.0),
        ("chroma", 28, 4.0),
    ],
)
def test_each_family_is_drawn_as_it_is_usually_drawn(name: str, steps: int, cfg: float) -> None:
    usual = by_name(name).drawn(Path("base.safetensors"))
    assert usual[:2] == (steps, cfg)
    assert usual.negative == ("low quality, blurry" if name == "chroma" else "")


def test_one_distilled_to_few_steps_is_drawn_in_few_and_without_guidance(tmp_path: Path) -> None:
    """It is told by its tensors (schnell), by what its folder says, or, where nothing else tells it, by its name."""
    assert numbers(tiny_flux1.write_base(tmp_path / "dev.safetensors")) == (28, 3.5)
    assert numbers(tiny_flux1.write_base(tmp_path / "s.safetensors", guidance=False)) == (4, 1.0)
    assert numbers(tiny_sd3.write_base(tmp_path / "medium.safetensors")) == (28, 4.5)
    assert numbers(tiny_sd3.write_base(tmp_path / "large.safetensors", dual=())) == (28, 3.5)
    krea, zimage = (by_name(name).drawn for name in ("krea2", "zimage"))
    (tmp_path / "scheduler").mkdir()
    for distilled, shift in ((True, 3.0), (False, 6.0)):
        (tmp_path / "model_index.json").write_text(json.dumps({"is_distilled": distilled}))
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"shift": shift}))
        assert krea(tmp_path)[:2] == ((8, 1.0) if distilled else (28, 4.5))
        assert zimage(tmp_path)[:2] == ((8, 1.0) if distilled else (28, 5.0))
    for name, steps in (("zimage", 8), ("krea2", 8), ("sd3", 4)):
        assert by_name(name).drawn(tmp_path / "some_Turbo_bf16.safetensors")[:2] == (steps, 1.0)


def test_what_somebody_says_goes_before_it_the_line_of_a_prompt_first() -> None:
    usual = Drawing(28, 4.0, "blurry")
    assert usual.asked(PromptLine("a"), None, None, None) == usual
    assert usual.asked(PromptLine("a", negative="n", steps=3), 5, 2.0, "m")[:3] == (3, 2.0, "n")
    assert usual.asked(PromptLine("a", cfg=0.0), 5, None, "")[:3] == (5, 0.0, "")
    assert usual.asked(PromptLine("a"), None, 1.0, None)[:3] == (28, 1.0, "")  # nobody would read it
    assert usual.asked(PromptLine("a", cfg=1.0), None, None, "m").negative == "m"


LONG = "hello " * 800


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_zimage.write_base(tmp_path_factory.mktemp("turbo") / "z_image_turbo.safetensors")


def made_with(path: Path) -> tuple[str, str, str]:
    rows = read_infotext(str(Image.open(path).info["parameters"]))[2]
    return rows["Steps"], rows["CFG scale"], rows["Sampler"]


def test_generate_and_grid_draw_a_turbo_as_one_and_tell_what_is_cut_off(
    turbo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tiny_zimage.beside(turbo.parent).items()
    beside = [str(word) for key, path in given for word in (f"--{key.replace('_', '-')}", *_list(path))]
    own = ["--base", str(turbo), "--size", "64", "--precision", "fp32", "--device", "cpu", *beside]
    prompts, lora = tmp_path / "prompts.txt", tmp_path / "lora.safetensors"
    prompts.write_text(f"{LONG} --n ugly\n")
    flow_checks.save_own(
        by_name("zimage"), flow_checks.lora_of(by_name("zimage"), tiny_zimage.models().transformer), lora
    )
    told = f"note: 1 prompt is longer than the text encoder reads; its end is cut off: {LONG[:60]}"
    with offline():
        assert main(["generate", *own, "--from-file", str(prompts), "--output", str(tmp_path / "a.png")]) == 0
        heard = "".join(capsys.readouterr())
        assert told.strip() in heard and "note: at cfg 1 the negative prompt is not read" in heard
        grid = [
            "--loras",
            str(lora),
            "--seeds",
            "1",
            "2",
            "--strengths",
            "1",
            "--prompts",
            str(prompts),
            "--no-measures",
        ]
        assert main(["grid", *own, *grid, "--prompts", str(prompts), "--output", str(tmp_path / "grid")]) == 0
        assert told.strip() in "".join(capsys.readouterr())
    cells = list((tmp_path / "grid" / "cells").glob("*.png"))
    assert [made_with(path) for path in (tmp_path / "a.png", *cells)] == [("8", "1", "Euler")] * 3
    assert "Euler, 8 steps" in (tmp_path / "grid" / "grid.html").read_text("utf-8")


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def test_previews_are_drawn_as_the_base_is_usually_drawn(turbo: Path, data: Path, tmp_path: Path) -> None:
    keys = {
        "base_model": turbo,
        "train_data_dir": data,
        "sample_prompts": ["a", "b --l 3 --s 9"],
        "sample_steps": "null",
    }
    config = load_config(tiny.write_config(tmp_path, **keys, **tiny_zimage.beside(turbo.parent)))
    assert [(p.sampling.steps, p.sampling.cfg) for p in previews_of(config, [])] == [(8, 1.0), (9, 3.0)]
    given = config.model_copy(update={"sample_steps": 5, "sample_cfg": 2.0, "sample_negative": "n"})
    assert previews_of(given, [])[0].sampling.negative == "n"
    assert [(p.sampling.steps, p.sampling.cfg) for p in previews_of(given, [])] == [(5, 2.0), (9, 3.0)]


def test_pictures_are_forecast_by_the_passes_that_they_take(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of each step, with the prompt and without; one at cfg 1, and where the base reads no negative prompt."""
    given = {"train_data_dir": tmp_path, "base_model": base, "output_dir": tmp_path / "out", "sample_every": 1}
    config = TrainConfig(**given, sample_prompts=["a", "b --s 3 --l 1"])  # type: ignore[arg-type]

    def passes(usual: Drawing, *, guided: bool) -> tuple[float, float]:
        """Of previews and of the report, in passes of a training that takes 1000."""
        monkeypatch.setattr(previews, "drawing", lambda path: usual)
        monkeypatch.setattr(overview.heldout, "trained", lambda config, steps: 1000.0)
        monkeypatch.setattr(overview.heldout, "passes", lambda held, config, steps: 0.0)
        family = SimpleNamespace(facts=SimpleNamespace(features={"negative"} if guided else set()))
        feed, held = SimpleNamespace(steps_per_epoch=10, family=family), SimpleNamespace(on=False)
        shares = overview.besides(config, feed, held, [], 11)  # type: ignore[arg-type]
        whole = 1000 / (1 - sum(shares.values()))
        return round(whole * shares["previews"], 6), round(whole * shares["report"], 6)

    pictures = 2 * 2  # two prompts, without the LoRA and with it
    assert passes(Drawing(20, 7.0), guided=True) == (10 * (20 * 2 + 3), pictures * 20 * 2)
    assert passes(Drawing(20, 7.0), guided=False) == (10 * (20 + 3), pictures * 20)
    assert passes(Drawing(8, 1.0), guided=True) == (10 * (8 + 3), pictures * 8)


class Reader:
    """Of a text encoder: one that reads three words."""

    def fingerprint(self) -> str:
        return "three"

    def encode(self, captions: Sequence[str], shown: Sequence[torch.Tensor] = ()) -> dict[str, torch.Tensor]:
        return {"states": torch.zeros(len(captions), 1, 1)}

    def remember(self, texts: Sequence[str], shown: Sequence[torch.Tensor] = ()) -> None:
        pass

    def excess(self, text: str) -> int:
        return max(0, len(text.split()) - 3)

    def is_short(self, text: str) -> bool:
        return False


def test_prompts_of_previews_that_are_cut_off_are_told_beside_captions(base: Path, tmp_path: Path) -> None:
    """Those of others' pictures are not: nobody wrote them."""
    given = {"train_data_dir": tmp_path, "base_model": base, "output_dir": tmp_path / "out"}
    prompts = ["one two three four", "one two", "a caption too long", "five six seven eight --n not so very ugly"]
    config, told = TrainConfig(**given, sample_prompts=prompts), list[object]()  # type: ignore[arg-type]
    samples = Split([Sample(Path("1.png"), "1.png", "a caption too long", 64, 64, "1")], [])
    captions_first(config, tmp_path, samples, told.append)(Reader())
    assert [event.text for event in told if isinstance(event, Note)] == [
        "note: 1 caption is longer than the text encoder reads; its end is cut off: a caption too long",
        "note: 3 prompts are longer than the text encoder reads; their ends are cut off, first: one two three four",
    ]
    told.clear()
    captions_first(config.model_copy(update={"sample_prompts": ("a",)}), tmp_path, Split([], []), told.append)(Reader())
    assert not [event for event in told if isinstance(event, Note)]


def test_captions_of_class_pictures_are_encoded_while_the_text_encoder_is_there(base: Path, tmp_path: Path) -> None:
    """Else it would be loaded once more, beside the model: its own captions, and the prompt where one has none."""
    for name, caption in {"1": "a cat", "2": None}.items():
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        if caption:
            (tmp_path / f"{name}.txt").write_text(caption)
    given = {"train_data_dir": tmp_path, "base_model": base, "output_dir": tmp_path / "out"}
    config = TrainConfig(**given, class_data_dir=tmp_path, class_prompt="a thing")  # type: ignore[arg-type]
    encoded = list[str]()

    class Told(Reader):
        def encode(self, captions: Sequence[str], shown: Sequence[torch.Tensor] = ()) -> dict[str, torch.Tensor]:
            encoded.extend(captions)
            return super().encode(captions)

    captions_first(config, tmp_path / "out", Split([], []), ignore)(Told())
    assert encoded == ["a cat", "a thing", ""]


def test_a_negative_prompt_that_nobody_would_read_is_refused(data: Path, tmp_path: Path) -> None:
    """Of a base that is drawn without guidance where no key says otherwise."""
    base = tiny_qwen21.write_base(tmp_path / "base.safetensors")
    keys = {"base_model": base, "train_data_dir": data, "sample_negative": "ugly", **tiny_qwen21.beside(tmp_path)}
    config = tiny.write_config(tmp_path, **keys)
    with pytest.raises(UserError, match="sample_negative: has no effect with sample_cfg: 1"):
        load_config(config)
    assert load_config(config, ["sample_cfg=3"]).sample_cfg == 3


def test_a_grid_of_a_run_is_drawn_as_its_previews_are(data: Path, base: Path, tmp_path: Path) -> None:
    """By its keys, if they are given; another base is drawn as it usually is."""
    lora, prompts = tmp_path / "run.safetensors", tmp_path / "prompts.txt"
    lora.touch()  # nobody opens it yet
    prompts.write_text("a\n")

    def asked(**given: object) -> Drawing:
        options = GridOptions(output=tmp_path, loras=(lora,), prompts=prompts, **given)  # type: ignore[arg-type]
        sources = find_sources(options)
        return sources.how(sources.prompts[0], sources.cfgs[0])

    keys = {"base_model": base, "train_data_dir": data}
    tiny.write_config(tmp_path, **keys, sample_cfg=4, sample_steps=9, sample_negative="ugly")
    assert asked()[:3] == (9, 4.0, "ugly")
    assert asked(steps=2, cfgs=(3.0,), negative_prompt="")[:3] == (2, 3.0, "")
    other = tmp_path / "other.safetensors"
    other.write_bytes(base.read_bytes())
    assert asked(base=other)[:3] == (20, 7.0, "")
    tiny.write_config(tmp_path, **keys, sample_steps="null")
    assert asked()[:3] == (20, 7.0, "")
