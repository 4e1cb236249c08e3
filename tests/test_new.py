"""`lora-scripts new`: what it writes is what `train` takes, and says what was seen."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

import small_words
import tiny
import tiny_flux2
import tiny_xl
from lora_scripts.cli import main
from lora_scripts.config.schema import TrainConfig
from lora_scripts.families.flow.transformer import Transformer
from lora_scripts.families.flux1.layout import Flux1Layout
from lora_scripts.families.sd3.layout import MEDIUM
from lora_scripts.families.table import by_name
from lora_scripts.run import first_config
from lora_scripts.run.configs import load_config
from lora_scripts.run.overview import odd_settings

CONFIGS = Path(__file__).parents[1] / "configs"
_ROW = re.compile(r"^(\w+): *([^#\n]*?) *(?:# *(.*))?$", re.M)
"""Of a config: key, value, reason."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, in which the command is typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("purpose", ["style", "character"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_is_written_can_be_trained(
    here: Path, family: str, purpose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write = {"sd1": tiny.write_base, "sdxl": tiny_xl.write_base}[family]
    write(here / "base.safetensors")
    tiny.write_pictures(here / "my pictures", 20)
    words = ["new", "mine", "--data", "my pictures", "--base", "base.safetensors", "--for", purpose]
    assert main([*words, "--trigger", "picture"]) == 0
    told = capsys.readouterr().out
    assert "written: configs/mine.yaml (20 pictures" in told and "before that" not in told
    assert "lora-scripts train --config configs/mine.yaml" in told
    config = load_config(Path("configs/mine.yaml"))
    assert config.train_data_dir == Path("my pictures") and config.metadata_path == Path("my pictures/metadata.csv")
    assert config.name == "mine" and config.size == (64, 64)  # what this base was made for
    assert config.epochs * 20 >= 500 and all(p.startswith("picture, ") for p in config.sample_prompts)
    assert config.train_text_encoder is (purpose == "character")
    text = Path("configs/mine.yaml").read_text("utf-8")
    assert all(" # " in line for line in text.splitlines() if ": " in line and not line.startswith("#"))
    assert main(words) == 2  # it overwrites nothing
    assert "configs/mine.yaml: is there already; choose another name" in capsys.readouterr().err.replace("\\", "/")


def test_whatever_calls_it_and_wherever_it_lies_is_written_so_that_it_is_read_back(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what does not load does not stay: the next start would say that it is there already."""
    tiny.write_base(here / "base.safetensors")
    data = Path("my pictures" if os.name == "nt" else 'my "best" \\pictures')
    tiny.write_pictures(here / data, 20)
    words = ["new", "mine", "--data", str(data), "--base", "base.safetensors", "--trigger"]
    with monkeypatch.context() as patch:
        patch.setattr(first_config, "load_config", lambda path: load_config(path, ["no_such_key=1"]))
        assert main([*words, "picture"]) == 2
    for trigger in ("picture", r"neon \(artist\)", 'say "hi"', "zib\nbo", "neon night market of an old harbour"):
        assert main([*words, trigger]) == 0
        lines = Path("configs/mine.yaml").read_text("utf-8").splitlines()
        assert all(" # " in line for line in lines if re.match(r"\w+: .*#", line))  # YAML wants a space before it
        config = load_config(Path("configs/mine.yaml"))
        Path("configs/mine.yaml").unlink()
        word = " ".join(trigger.split())
        assert config.train_data_dir == data and config.metadata_path == data / "metadata.csv"
        assert config.trigger_word == word and all(p.startswith(f"{word}, ") for p in config.sample_prompts)


OWN = {
    "metadata_path",
    "train_data_dir",
    "reference_dir",
    "base_model",
    "text_encoder",
    "vae",
    "output_dir",
    "sample_prompts",
}
"""Keys of one's own pictures and files,"""
COUNTED = {"epochs", "save_steps", "resolution"}
"""those that `new` counts out,"""
ASKED = {"flip", "class_prompt", "class_images"}
"""and those that need to be thought about, which a template names and `new` leaves alone."""
TEMPLATES = {
    **{
        name: name for name in ("anima", "chroma", "flux1", "flux2_dev", "krea2", "qwen_image", "sd3", "sdxl", "zimage")
    },
    **{"sd1": "sd15", "flux2": "flux2_klein", "flux3": "flux3_klein", "qwen_image21": "qwen_image_21"},
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_new_and_the_template_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every key, and in the reason of those whose value one may want to change."""
    facts = by_name(name)
    published = {"flux1": Flux1Layout(), "sd3": MEDIUM}
    monkeypatch.setattr(Transformer, "layout_at", lambda self, path: published[name])
    drawn = facts.drawn(Path("base.safetensors"))
    for purpose, recipe in facts.recipes.items():
        path = CONFIGS / f"{TEMPLATES[name]}_{purpose}.yaml"
        if not path.exists():
            continue
        text = path.read_text("utf-8")
        rows = {key: (value.strip(), why) for key, value, why in _ROW.findall(text)}
        ours = {s.key: (s.value, s.why) for s in (*recipe.settings, *drawn.settings())}
        assert {key: value for key, (value, _) in ours.items()} == {
            key: value for key, (value, _) in rows.items() if key not in OWN | COUNTED | ASKED
        }
        for key in ours.keys() & {"learning_rate", "base_precision", "offload_blocks", "sample_cfg", "sample_steps"}:
            assert not rows[key][1] or rows[key][1] == ours[key][1], key


def test_an_edit_has_references(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no trigger, and previews of its own pairs; what is missing among them is told."""
    tiny_flux2.write_folder(here / "base")
    tiny.write_pictures(here / "after", 20)
    tiny.write_pictures(here / "before", 19)
    words = ["new", "mine", "--data", "after", "--base", "base", "--references", "before"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "before that: after/19.png: has no reference; add before/19.png" in told.replace("\\", "/")
    text = Path("configs/mine.yaml").read_text("utf-8")
    assert text.startswith("# An edit. Train it") and "sample_prompts:" not in text
    tiny.write_pictures(here / "before", 20)
    config = load_config(Path("configs/mine.yaml"))
    assert config.reference_dir == Path("before") and config.trigger_word is None and not config.caption_dropout
    assert main([*words, "--output", "b.yaml"]) == 0 and "before that" not in capsys.readouterr().out
    for more, why in ((["--trigger", "a"], "--trigger is not for an edit"), (["--for", "character"], "--for is not")):
        assert main([*words, "--output", "c.yaml", *more]) == 2
        assert why in capsys.readouterr().err
    tiny.write_base(here / "sd.safetensors")
    assert main([*words, "--output", "c.yaml", "--base", "sd.safetensors"]) == 2
    assert "Stable Diffusion 1.x takes none" in capsys.readouterr().err


def test_it_says_what_is_still_to_be_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_base(here / "base.safetensors")
    tiny.write_pictures(here / "data", 20)
    words = [
        "new",
        "mine",
        "--data",
        "data",
        "--base",
        "base.safetensors",
        "--trigger",
        "zorblax",
        "--output",
        "a.yaml",
    ]
    assert main(words) == 0
    told = capsys.readouterr().out
    mend = "lora-scripts label --input data --words-only --trigger zorblax"
    assert f"20 of 20 captions lack the word zorblax: {mend}" in told
    table = here / "data" / "metadata.csv"
    rows = table.read_text("utf-8").splitlines()
    table.write_text("\n".join([*rows[:-2], *(f"{row.partition(',')[0]}," for row in rows[-2:])]) + "\n", "utf-8")
    (here / "data" / "scan.tif").touch()
    assert main([*words[:-1], "e.yaml"]) == 0  # as label leaves them of which its captioner says nothing
    told = capsys.readouterr().out
    named = " ".join(row.partition(",")[0] + "," for row in rows[-2:])[:-1]
    assert f"2 of 20 pictures have an empty caption: write it yourself ({named})" in told
    assert "lora-scripts label" not in told and "1 not read (.tif 1): convert to JPEG or PNG" in told
    table.unlink()
    assert main([*words[:-1], "b c.yaml"]) == 0
    told = capsys.readouterr().out
    assert "20 of 20 pictures have no caption: lora-scripts label --input data" in told
    for command in ("check", "plan", "train"):  # to be copied, blanks and all
        line = next(line for line in told.splitlines() if f"lora-scripts {command}" in line)
        assert shlex.split(line.partition(": ")[2])[-2:] == ["--config", "b c.yaml"]


def test_folders_that_say_how_often_are_written_and_counted(here: Path) -> None:
    tiny.write_base(here / "base.safetensors")
    for folder, count in (("10_zibbo", 6), ("3_close up", 10), ("others", 4)):
        tiny.write_pictures(here / "data" / folder, count)
    assert main(["new", "mine", "--data", "data", "--base", "base.safetensors"]) == 0
    text = (here / "configs" / "mine.yaml").read_text("utf-8")
    assert "10_zibbo, 3_close up: how often" in text
    config = load_config(Path("configs/mine.yaml"))
    assert config.folder_repeats and 500 <= config.epochs * (60 + 30 + 4) <= 1200
    assert f"each of {config.epochs} epochs: {-(-94 // config.batch_size) * config.epochs} steps" in text


def test_faults(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_base(here / "base.safetensors")
    tiny.write_pictures(here / "data", 3)
    assert main(["new", "a/b", "--data", "data", "--base", "base.safetensors"]) == 2
    assert "the name 'a/b' cannot be a file's" in capsys.readouterr().err
    assert main(["new", "a", "--data", "nowhere", "--base", "base.safetensors"]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert main(["new", "Nul.2", "--data", "nowhere", "--base", "other.safetensors"]) == 2
    told = capsys.readouterr().err  # all at once
    assert all(part in told for part in ("'Nul.2' cannot", "nowhere: no such", "other.safetensors does not exist"))
    assert not (here / "configs").exists()
    assert main(["new", "a", "--data", "data", "--base", "base.safetensors"]) == 0
    assert "3 pictures are few" in capsys.readouterr().out


def test_settings_that_are_rarely_meant_are_told_with_what_to_write() -> None:
    """Before the first step, in the table of train and plan."""
    config = TrainConfig(
        train_data_dir="d", base_model="b", output_dir="o", learning_rate=2e-4, epochs=10, batch_size=4
    )
    assert odd_settings(config, (512, 512), 50, 130) == []
    told = odd_settings(
        config.model_copy(update={"learning_rate": 0.02, "resolution": 256, "warmup_steps": 9, "val_every": 100,
                                  "train_text_encoder": True, "text_encoder_start": 4}),
        (512, 512), 3, 4,
    )  # fmt: skip
    assert told == [
        "learning_rate 0.02 is high for adamw: 0.0002 is usual",
        "3 pictures are few: the LoRA will repeat them; 20 or more of a figure, 50 of a style",
        "resolution 256x256 is far from 512x512, which this base was made for: it draws badly at such a size",
        "4 steps are few: a LoRA mostly needs 400 and more; raise epochs",
        "text_encoder_start 4 of 4 steps: the text encoder is never trained",
        "warmup_steps 9 of 4 steps: learning_rate is never reached",
        "val_every 100 of 4 steps: measured once, at the end; leave it out for ten times",
    ]
    assert odd_settings(config, (1024, 1024), 50, 130)[0].startswith("resolution 512x512 is far from 1024x1024")
    wide = config.model_copy(update={"resolution": (768, 384)})
    assert odd_settings(wide, (512, 512), 50, 130) == []
    assert (
        odd_settings(config.model_copy(update={"optimizer": "prodigy", "learning_rate": 1.0}), (512, 512), 50, 130)
        == []
    )


def test_for_a_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command: keys for records, their lengths in the model's tokens, and a template where it has none."""
    monkeypatch.chdir(tmp_path)
    base = small_words.write_model(tmp_path / "model")
    rows = [{"instruction": f"what is {i}?", "output": "x" * (300 if i < 3 else 9), "id": i} for i in range(60)]
    Path("reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["new", "report", "--data", "reports.jsonl", "--base", "model"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "written: configs/report.yaml (60 records, a causal language model, 90 steps)" in told
    assert "before that: nothing is learned of these keys of records: id (60)" in told
    config = load_config(Path("configs/report.yaml"))
    assert (config.train_file, config.output_dir.name) == (Path("reports.jsonl"), "report")
    assert (config.epochs, config.max_length, config.val_split, config.chat_template) == (6, 256, 0.05, None)
    assert "# tokens of a record; 3 of 60 are longer and lose their end" in Path("configs/report.yaml").read_text()
    (base / "chat_template.jinja").unlink()
    assert main([*words, "--output", "other.yaml"]) == 0
    assert load_config(Path("other.yaml")).chat_template == "alpaca"
    assert main([*words, "--output", "third.yaml", "--trigger", "x"]) == 2
    assert "--trigger is for pictures" in capsys.readouterr().err
    assert main([*words, "--output", "third.yaml", "--references", "before"]) == 2
    assert "--references is for pictures" in capsys.readouterr().err
    told_by = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(told_by | {"architectures": ["Gemma3ForConditionalGeneration"]}))
    assert main([*words, "--output", "third.yaml"]) == 2
    assert "this is no causal language model, but Gemma3ForConditionalGeneration" in capsys.readouterr().err
    assert not Path("third.yaml").exists()


def test_pictures_are_no_records_of_a_language_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line: their table of captions has a fault for each row."""
    model = small_words.write_model(tmp_path / "model")
    capsys.readouterr()
    assert main(["new", "mine", "--data", str(data), "--base", str(model)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "holds pictures, and the base is a language model; give a base that draws" in told
