"""`lora-scripts generate`: what the LoRAs in a prompt do to the picture, against the base and against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

import tiny
from conftest import Finished, offline
from lora_scripts.adapters.inject import remove
from lora_scripts.adapters.layer import lora_shapes
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.base import Sampling
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.sd1.names import sd1
from lora_scripts.formats import io
from lora_scripts.loras import kohya
from lora_scripts.loras.file import read
from lora_scripts.loras.on_model import apply, check_fits


@pytest.fixture(scope="module")
def loras(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two strong LoRAs: `all` in every layer, `some` in a few, of other ranks and alphas."""
    folder = tmp_path_factory.mktemp("loras")
    for name, rank, alpha in (("all", 2, 1.0), ("some", 3, 6.0)):
        g = torch.Generator().manual_seed(rank)
        weights = {}
        for path, layer in family.trainable().items():
            if name == "all" or ".up_blocks.1.attentions" in path or "mlp" in path:
                down, up = lora_shapes(layer, rank)
                a = torch.randn(down, generator=g) / down[1] ** 0.5
                weights[path] = LoraWeights(a, 0.1 * torch.randn(up, generator=g), alpha)
        io.save_safetensors(folder / f"{name}.safetensors", kohya.to_kohya(weights, sd1().kohya, dtype=torch.float32))
    return folder


def drawn(base: Path, loras: Path, output: Path, prompt: str, *more: str) -> np.ndarray:
    """The picture that the command line draws, without a network; [h, w, 3]."""
    argv = ["generate", "--base", str(base), "--prompt", prompt, "--lora-dir", str(loras), "--output", str(output)]
    settings = ["--steps", "2", "--size", "64", "--precision", "fp32", "--device", "cpu", "--cfg", "3"]
    with offline():
        assert main([*argv, *settings, *more]) == 0
    return np.asarray(Image.open(output))


@pytest.fixture(scope="module")
def plain(base: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return drawn(base, loras, tmp_path_factory.mktemp("plain") / "a.png", "a house")


def test_strength_0_is_the_base_bit_for_bit(base: Path, loras: Path, plain: np.ndarray, tmp_path: Path) -> None:
    none = drawn(base, loras, tmp_path / "a.png", "a house <lora:all:0> <lora:some:0.0>")
    assert np.array_equal(none, plain)
    assert plain.shape == (64, 64, 3) and plain.std() > 1


@torch.no_grad()
def test_two_loras_are_what_diffusers_draws(base: Path, loras: Path, plain: np.ndarray, tmp_path: Path) -> None:
    """Text encoder, guidance, sampler, VAE and both LoRAs at their strengths, against the pipeline of diffusers."""
    ours = drawn(
        base, loras, tmp_path / "a.png", "a house <lora:all:0.8> <lora:some:-0.5>", "--negative-prompt", "ugly"
    )
    unet, vae, text = tiny.models()
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "use_karras_sigmas": True}
    parts = {"tokenizer": clip_tokenizer(), "scheduler": DPMSolverMultistepScheduler(**schedule, steps_offset=1)}
    pipe = StableDiffusionPipeline(
        vae, text, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    for name in ("all", "some"):
        pipe.load_lora_weights(str(loras), weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["all", "some"], [0.8, -0.5])
    asked = {"negative_prompt": "ugly", "num_inference_steps": 2, "guidance_scale": 3.0, "width": 64, "height": 64}
    theirs = np.asarray(pipe("a house", generator=torch.Generator().manual_seed(42), **asked).images[0])
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert np.abs(ours.astype(int) - plain.astype(int)).mean() > 5
    assert difference.max() <= 2 and difference.mean() < 0.1


def test_prompt_seed_and_negative_prompt_count(base: Path, loras: Path, plain: np.ndarray, tmp_path: Path) -> None:
    negative = drawn(base, loras, tmp_path / "n.png", "a house", "--negative-prompt", "a tree")
    assert not np.array_equal(negative, plain)
    drawn_two = ["--count", "2", "--seed", "41"]
    output = tmp_path / "deep" / "pictures.png"
    argv = ["--prompt", "a house", "--lora-dir", str(loras), "--output", str(output), "--base", str(base)]
    settings = ["--steps", "2", "--size", "64", "--precision", "fp32", "--device", "cpu", "--cfg", "3"]
    assert main(["generate", *argv, *settings, *drawn_two]) == 0
    assert sorted(p.name for p in output.parent.iterdir()) == ["pictures-1.png", "pictures-2.png"]
    one, two = (np.asarray(Image.open(output.parent / f"pictures-{n}.png")) for n in (1, 2))
    assert np.array_equal(two, plain) and not np.array_equal(one, plain)  # the second has seed 42
    assert "Seed: 42" in Image.open(output.parent / "pictures-2.png").text["parameters"]


def test_a_base_that_predicts_v_is_sampled_so(base: Path, loras: Path, plain: np.ndarray, tmp_path: Path) -> None:
    v = drawn(base, loras, tmp_path / "v.png", "a house", "--prediction", "v")
    assert not np.array_equal(v, drawn(base, loras, tmp_path / "e.png", "a house", "--prediction", "epsilon"))
    assert np.array_equal(v, drawn(base, loras, tmp_path / "again.png", "a house", "--prediction", "v"))


def test_the_picture_tells_how_it_was_made(base: Path, finished: Finished, tmp_path: Path) -> None:
    """With the LoRA that was trained, from the output folder, at the base's own size."""
    output = tmp_path / "a.png"
    argv = ["--base", str(base), "--lora-dir", str(finished.folder.parent), "--output", str(output)]
    words = ["--prompt", "a house, <lora:mylora:0.8>", "--negative-prompt", "ugly", "--steps", "1", "--cfg", "2.5"]
    assert main(["generate", *argv, *words, "--seed", "5"]) == 0
    image = Image.open(output)
    assert image.size == (64, 64)  # modelspec.resolution of the base
    first, second, third = image.text["parameters"].splitlines()
    assert (first, second) == ("a house, <lora:mylora:0.8>", "Negative prompt: ugly")
    told = dict(part.split(": ", 1) for part in third.split(", "))
    wanted = {"Steps": "1", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "2.5", "Seed": "5"}
    assert {k: told[k] for k in wanted} == wanted and told["Size"] == "64x64" and told["Model"] == "base"
    assert told["Lora hashes"].startswith('"mylora: ')


@torch.no_grad()
def test_strengths_scale_the_change_and_loras_add_up(loras: Path, family: Any) -> None:
    """Against a UNet into which the changes, computed in float64, were added by hand."""
    one, two = (read(loras / f"{name}.safetensors").weights for name in ("all", "some"))
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    states = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(2))
    modules, kept = family.trainable(), {}
    plain = family.predict(x, t, states)
    try:
        for lora, strength in ((one, 0.7), (two, -0.4)):
            for path, w in lora.items():
                layer = modules[path]
                kept.setdefault(path, layer.weight.data)
                delta = w.alpha / w.rank * w.up.double().flatten(1) @ w.down.double().flatten(1)
                layer.weight.data = (layer.weight.double() + strength * delta.view(layer.weight.shape)).float()
        merged = family.predict(x, t, states)
    finally:
        for path, weight in kept.items():
            modules[path].weight.data = weight
    first = apply(family, one, 0.7)
    second = apply(family, two, -0.4)
    applied = family.predict(x, t, states)
    assert not any(p.requires_grad for layer in (*first.values(), *second.values()) for p in layer.parameters())
    remove(family.roots, second)
    remove(family.roots, first)
    assert (applied - plain).abs().max() > 0.1
    torch.testing.assert_close(applied, merged, rtol=1e-3, atol=1e-3)
    assert torch.equal(family.predict(x, t, states), plain)


def mistake(capsys: pytest.CaptureFixture[str], base: Path, loras: Path, prompt: str, *more: str) -> str:
    assert main(["generate", "--base", str(base), "--prompt", prompt, "--lora-dir", str(loras), *more]) == 2
    return capsys.readouterr().err


def test_mistakes_are_told_before_a_model_is_loaded(
    base: Path, loras: Path, tmp_path: Path, never_loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.safetensors").write_bytes(base.read_bytes())
    (tmp_path / "empty.safetensors").touch()
    told = mistake(capsys, tmp_path / "base.safetensors", loras, "a <lora:al:1> <lora:nothing:1>")
    assert told.splitlines() == [
        f"error: there is no al.safetensors in {loras}; did you mean <lora:all:0.8>?",
        f"error: there is no nothing.safetensors in {loras}; there is all, some",
    ]
    for size in ("100x64", "64x100"):
        assert "multiples of 8" in mistake(capsys, tmp_path / "base.safetensors", loras, "a", "--size", size)
    assert "not a number" in mistake(capsys, tmp_path / "base.safetensors", loras, "a <lora:all:x>")
    assert "this is an empty file" in mistake(capsys, tmp_path / "empty.safetensors", loras, "a <lora:all:1>")


def test_a_lora_of_another_base_names_its_modules(
    base: Path, loras: Path, family: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    deep = "text_encoder.encoder.layers.7.mlp.fc1"  # the tiny text encoder has one layer
    wide = {path: LoraWeights(torch.ones(2, 1280), torch.ones(1280, 2), 2.0)}
    wide[deep] = LoraWeights(torch.ones(2, 16), torch.ones(32, 2), 2.0)
    io.save_safetensors(tmp_path / "wide.safetensors", kohya.to_kohya(wide, sd1().kohya))
    told = mistake(capsys, base, tmp_path, "a <lora:wide>", "--output", str(tmp_path / "a.png")).splitlines()
    assert len(told) == 2 and not (tmp_path / "a.png").exists()
    assert f"{path}: A [2, 1280], B [1280, 2] for a weight [64, 64]; this LoRA is for another base model" in told[1]
    assert f"{deep}: the base model has no such layer" in told[0]
    with pytest.raises(UserError):
        check_fits(wide, family, tmp_path)
    (tmp_path / "base.safetensors").write_bytes(base.read_bytes())
    assert "not a LoRA" in mistake(capsys, base, tmp_path, "a <lora:base:1>")


def test_a_picture_of_nothing_but_infinities_is_an_error(family: Any, loras: Path) -> None:
    layers = apply(family, read(loras / "all.safetensors").weights, 1e30)
    try:
        with pytest.raises(UserError, match="NaN"):
            family.generate("a house", 1, Sampling(steps=1, size=(64, 64)))
    finally:
        remove(family.roots, layers)
