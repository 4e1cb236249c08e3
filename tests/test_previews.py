"""Pictures while training: drawn from what a file would hold, told as A1111 tells, and never in the training's way."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import tiny
from lora_scripts.config.load import load_config
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families.sd1 import singlefile
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.generate import known_by
from lora_scripts.run.preflight import preflight
from runs import stopped

LINE = "a gradient, (round:1.2) --n blurry --w 64 --h 128 --d 7 --l 3 --s 2"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "state" / f"step-{step:08}" / "lora.safetensors")


@pytest.fixture(scope="module")
def shown(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in step 5, with previews before the first step and every second one, of an average."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "prompts.txt").write_text(f"# two\n\n{LINE}\npicture 3 --d 8\n", encoding="utf-8")
    keys = {"lora_alpha": 1, "ema_decay": 0.9, "sample_prompts": folder / "prompts.txt", "sample_first": "true"}
    keys |= {"targets": tiny.SOME}
    config = tiny.write_config(
        folder, base_model=base, train_data_dir=data, output_dir=folder / "shown", sample_every=2, **keys
    )
    # Its digest is known since the base was loaded; to read 7 GB for it once more takes ten seconds.
    with mock.patch.object(known_by, "sha256_of", side_effect=AssertionError("the base is read again")):
        stopped(config, 5)
    return folder


def test_a_preview_is_what_the_saved_file_draws_in_another_process(shown: Path, base: Path) -> None:
    folder = shown / "shown"
    picture = folder / "samples" / "step000002-1.png"
    argv = [
        sys.executable,
        "-m",
        "lora_scripts",
        "generate",
        "--base",
        base,
        "--lora-dir",
        shown,
        "--output",
        "again.png",
    ]
    argv += ["--prompt", "a gradient, (round:1.2) <lora:shown-step000002:1>", "--negative-prompt", "blurry"]
    argv += ["--size", "64x128", "--seed", "7", "--cfg", "3", "--steps", "2", "--precision", "fp32"]
    subprocess.run([str(word) for word in argv], cwd=shown, check=True, capture_output=True)
    assert pixels(picture).shape == (128, 64, 3)
    assert np.array_equal(pixels(picture), pixels(shown / "again.png"))
    told = Image.open(picture).text["parameters"]  # type: ignore[attr-defined]
    first, negative, rest = told.split("\n")
    assert (first, negative) == ("a gradient, (round:1.2) <lora:shown:1>", "Negative prompt: blurry")
    autov3 = model_hashes(folder / "shown-step000002.safetensors").autov3
    assert "Steps: 2, " in rest and "Seed: 7, Size: 64x128" in rest and f'"shown: {autov3}"' in rest
    assert f"Model hash: {hashlib.sha256(base.read_bytes()).hexdigest()[:10]}, " in rest
    # Not the weights in training: those of step 2 are not their average.
    trained = weights(folder, 5)
    assert any(not torch.equal(trained[f"ema.{name}"], w) for name, w in trained.items() if f"ema.{name}" in trained)


def test_the_picture_before_the_first_step_is_the_base_models(shown: Path, base: Path) -> None:
    from lora_scripts.cli import main

    argv = ["--prompt", "picture 3", "--seed", "8", "--steps", "1", "--size", "64", "--precision", "fp32"]
    assert main(["generate", "--base", str(base), *argv, "--output", str(shown / "base.png")]) == 0
    assert np.array_equal(pixels(shown / "shown" / "samples" / "step000000-2.png"), pixels(shown / "base.png"))
    assert not np.array_equal(pixels(shown / "shown" / "samples" / "step000004-2.png"), pixels(shown / "base.png"))
    first = Image.open(shown / "shown" / "samples" / "step000000-2.png").text  # type: ignore[attr-defined]
    assert first["parameters"].startswith("picture 3\nSteps: 1") and "Lora" not in first["parameters"]
    assert len(list((shown / "shown" / "samples").iterdir())) == 6


def test_training_with_previews_is_training_without(shown: Path) -> None:
    more = ["sample_every=0", "sample_first=false", f"output_dir={shown / 'blind'}"]
    stopped(shown / "config.yaml", 5, *more)
    seen, blind = weights(shown / "shown", 5), weights(shown / "blind", 5)
    assert seen.keys() == blind.keys()
    assert all(torch.equal(seen[name], blind[name]) for name in seen)


def test_a_preview_that_fails_is_told_and_the_training_goes_on(
    shown: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet, vae, text = (m.state_dict() for m in tiny.models())
    # Numbers that are finite, as a broken file's are not, and whose products are not.
    for name in ("decoder.conv_norm_out.bias", "decoder.conv_out.weight"):
        vae[name] = torch.full_like(vae[name], 3e38)
    io.save_safetensors(shown / "nan.safetensors", singlefile.to_ldm(unet, vae, text), {})
    more = [f"base_model={shown / 'nan.safetensors'}", f"output_dir={shown / 'nan'}", "sample_prompts=[a, b]"]
    stopped(shown / "config.yaml", 5, *more)
    told = capsys.readouterr().out
    assert told.count("failed (the picture came out as NaN); the training goes on\n") == 6
    assert "note: preview 2 of step 4 failed" in told
    seen, other = weights(shown / "shown", 5), weights(shown / "nan", 5)
    assert all(torch.equal(seen[name], other[name]) for name in seen)


def test_every_so_many_epochs(shown: Path) -> None:
    config = load_config(shown / "config.yaml", ["sample_every=", "sample_every_epochs=2"])
    assert config.preview_steps(10) == 20
    assert load_config(shown / "config.yaml").preview_steps(10) == 2


def test_faults_are_told_with_their_places(base: Path, data: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a house\n# --q 3\na tree --q 3\n<lora:x:1> a car --w 65\n", encoding="utf-8")
    paths = {"base_model": base, "train_data_dir": data}
    config = tiny.write_config(tmp_path, sample_prompts=prompts, **paths)
    with pytest.raises(UserErrors) as found:
        preflight(load_config(config), resume=None)
    lines = [str(error).removeprefix(f"{prompts.as_posix()}:") for error in found.value.errors]
    assert lines[0].startswith("3: unknown option --q")
    assert lines[1].startswith("4: holds '<lora:x:1>'") and "take it out" in lines[1]
    assert lines[2].startswith("4: --w must be multiples of 8")

    text = config.read_text().replace(
        f"sample_prompts: {prompts}", "sample_prompts:\n- a house\n- a tree <lora:x> --s 0"
    )
    config.write_text(text.replace("sample_every: 0", "sample_every: 5\nsample_every_epochs: 1"))
    with pytest.raises(UserErrors) as found:
        load_config(config)
    number = next(i for i, row in enumerate(text.splitlines(), 1) if "a tree" in row)
    (tag, both) = sorted((str(error) for error in found.value.errors), key=lambda e: "says again" in e)
    assert tag.startswith(f"{config.as_posix()}:") and "item 2 holds '<lora:x>'" in tag and "take it out" in tag
    assert abs(int(tag.removeprefix(f"{config.as_posix()}:").partition(":")[0]) - number) <= 1
    assert "sample_every_epochs: says again what sample_every says" in both

    config = tiny.write_config(tmp_path, sample_prompts=tmp_path / "none.txt", **paths)
    with pytest.raises(UserError, match=r"none.txt is no file"):
        load_config(config)
