"""Stable Diffusion 2.x as loaded, against diffusers' own modules, schedulers, converters and pipeline: what differs
from 1.x."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_open_clip_checkpoint
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

import tiny
import tiny_sd2
from families import BETAS, loss_is_diffusers
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.base import LoadOptions, Sampling
from lora_scripts.families.clip.tokenizer import _vocabulary
from lora_scripts.families.sd1 import check, layout, model, singlefile
from lora_scripts.families.sd1.layout import text_rows, unet_rows
from lora_scripts.families.sd1.names import STANDARD, STANDARD_2, sd1_base, sd1_table
from lora_scripts.families.table import by_name, find, settings
from lora_scripts.formats.header import read_header
from lora_scripts.loras import kohya
from lora_scripts.loras.consumers import a1111, comfyui
from lora_scripts.loras.file import read

CPU = torch.device("cpu")
FP32 = LoadOptions(CPU, torch.float32)
CAPTIONS = ["", "a photo of a cat, 1girl — ünïcode 🐈", "word " * 100]
TEXT = "cond_stage_model.model."
BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
FACTS = by_name("sd2")


@pytest.fixture(scope="module")
def models() -> tiny_sd2.Models:
    return tiny_sd2.models()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd2.write_base(tmp_path_factory.mktemp("sd2") / "sd2.safetensors")


@pytest.fixture(scope="module")
def family(base: Path) -> Any:
    return model.load(base, FP32)


@pytest.fixture(scope="module")
def pipe(models: tiny_sd2.Models) -> StableDiffusionPipeline:
    """diffusers' own, with a tokenizer as published: it pads with an exclamation mark."""
    vocabulary, merges = _vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token="!")
    scheduler = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    pipe = StableDiffusionPipeline(
        models.vae, models.text, tokenizer, models.unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_prompts_are_what_the_pipeline_makes_of_them(family: Any, pipe: StableDiffusionPipeline) -> None:
    states, _ = pipe.encode_prompt(CAPTIONS, CPU, 1, False)
    torch.testing.assert_close(family.encode_text(CAPTIONS)["states"], states, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@torch.no_grad()
def test_the_loss_is_that_of_diffusers_modules_and_schedulers(
    kind: str, base: Path, models: tiny_sd2.Models, pipe: StableDiffusionPipeline
) -> None:
    family = model.load(base, replace(FP32, settings={"prediction": kind}))
    states, _ = pipe.encode_prompt(CAPTIONS[:2], CPU, 1, False)
    loss_is_diffusers(family, kind, models.unet, states, CAPTIONS[:2])
    levels, times = model.steps.schedule_of(family.objective).at(torch.tensor([0.0, 0.9999999]).double(), CPU)
    assert times.tolist() == [0, 999]
    torch.testing.assert_close(levels.noise, torch.tensor([0.0291548, 0.9976697]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_pictures_are_those_of_the_pipeline(kind: str, base: Path, pipe: StableDiffusionPipeline) -> None:
    theirs = {"epsilon": "epsilon", "v": "v_prediction"}[kind]
    family = model.load(base, replace(FP32, settings={"prediction": kind}))
    usual, pipe.scheduler = pipe.scheduler, pipe.scheduler.from_config(pipe.scheduler.config, prediction_type=theirs)
    try:
        noise = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(7))
        ask = {"width": 64, "height": 96, "num_inference_steps": 3, "guidance_scale": 5.0, "latents": noise}
        picture = pipe("a house", negative_prompt="ugly", **ask).images[0]
    finally:
        pipe.scheduler = usual
    ours = family.generate("a house", 7, Sampling(3, 5.0, "ugly", (64, 96)))
    assert ours.size == (64, 96)
    assert np.abs(np.asarray(ours, int) - np.asarray(picture, int)).max() <= 2


def test_a_single_file_is_whole_and_read_as_diffusers_reads_it(base: Path, models: tiny_sd2.Models) -> None:
    tensors = load_file(base)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    with safe_open(base, "pt") as handle:
        unet, vae, text = singlefile.from_ldm(handle, singlefile.layout_of(shapes))
        again = singlefile.to_ldm(unet, vae, text)
    assert again.keys() == tensors.keys() and all(torch.equal(again[k], tensors[k]) for k in tensors)
    theirs = convert_ldm_unet_checkpoint(dict(tensors), models.unet.config)
    assert theirs.keys() == unet.keys() and all(torch.equal(theirs[k], unet[k]) for k in unet)
    theirs = convert_open_clip_checkpoint(models.text, dict(tensors))
    theirs = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in theirs.items()}
    assert theirs.keys() == text.keys() and all(torch.equal(theirs[k], text[k]) for k in text)


def test_the_published_model(tmp_path: Path) -> None:
    """865.91 M numbers in the UNet, as Stability's program prints; of 24 layers of text 23 are read, as diffusers does,
    whether or not the last is there."""
    rows = unet_rows(STANDARD_2), text_rows(STANDARD_2)
    assert [sum(torch.Size(row.shape).numel() for row in part) for part in rows] == [865_910_724, 340_387_840]
    assert STANDARD_2.unet.heads == (5, 10, 20, 20)
    narrow = replace(tiny.LAYOUT, text_layers=24, second=True, vae_widths=())
    small = {row.ldm: row.file_shape for row in unet_rows(narrow) + text_rows(narrow)}
    more = dict.fromkeys((f"{TEXT}text_projection", f"{TEXT}logit_scale"), (16,))
    for shapes in (small | more, {k: v for k, v in small.items() if ".resblocks.23." not in k}):
        found = singlefile.layout_of(shapes, vae=False)
        singlefile.check(shapes, found)
        assert found.text_layers == 23 == layout.LAYERS_2
    with pytest.raises(UserError, match=r"tensors of the text encoder are missing: .*resblocks\.22\.mlp\.c_fc\.bias"):
        singlefile.check({k: v for k, v in small.items() if ".22.mlp.c_fc.b" not in k}, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_what_it_answers_with_is_told_by_a_bias_where_the_file_does_not_say(dtype: torch.dtype, tmp_path: Path) -> None:
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1, 4), f"{TEXT}ln_final.bias": torch.zeros(1)}
    for spread, kind, size in ((0.0625, "epsilon", (512, 512)), (0.125, "v", (768, 768))):
        tensors = first | {BIAS: (spread * torch.tensor([1.0, -1.0]).repeat(16)).to(dtype)}
        save_file(tensors, path := tmp_path / f"{kind}.safetensors")
        assert settings(path, {}) == {"prediction": kind, "zero_terminal_snr": False}
        assert FACTS.made_for(path) == size and f"spreads by {spread:.3f}" in FACTS.guessed(path)
        assert settings(path, {"prediction": "epsilon"})["prediction"] == "epsilon"
    save_file(tensors, path, {"modelspec.prediction_type": "epsilon"})
    assert settings(path, {})["prediction"] == "epsilon" and not FACTS.guessed(path)


def test_a_folders_scheduler_and_a_files_marks_say_it(tmp_path: Path) -> None:
    folder = tiny_sd2.write_folder(tmp_path / "v", prediction_type="v_prediction")
    assert find(folder) is FACTS and settings(folder, {})["prediction"] == "v" and not FACTS.guessed(folder)
    assert FACTS.made_for(folder) == (64, 64)
    empty = torch.zeros(0)
    marked = tiny_sd2.write_base(tmp_path / "v.safetensors", v_pred=empty, ztsnr=empty)
    assert settings(marked, {}) == {"prediction": "v", "zero_terminal_snr": True}
    old = tiny.write_base(tmp_path / "sd1.safetensors")
    assert settings(old, {}) == {"prediction": "epsilon", "zero_terminal_snr": False}
    save_file(load_file(old) | {"v_pred": empty}, old)
    by_name("sd1").check(old, True)
    assert settings(old, {})["prediction"] == "v"


def test_a_run_tells_how_it_knows_and_its_lora_says_v(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tiny_sd2.models().tensors()
    save_file(tensors | {BIAS: torch.tensor([0.2, -0.2]).repeat(16)}, tmp_path / "base.safetensors")
    keys = {"epochs": 1, "targets": "['*mid_block*to_out*']", "save_precision": "fp32", "sample_first": "false"}
    config = tiny.write_config(tmp_path, train_data_dir=data, **keys)
    assert main(["train", "--config", str(config)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "answers with v: the file does not say: one bias spreads by 0.200, above 0.09 it is v, as in ComfyUI" in told
    lora = tmp_path / "out" / "out.safetensors"
    metadata = read_header(lora).metadata
    assert metadata["ss_v2"] == "True" and metadata["ss_base_model_version"] == "sd_v2_v"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert read(lora).family is FACTS and a1111.hidden(metadata, FACTS.lora.base_version, FACTS.lora.v2) is None
    assert "ss_v2 is 'True'" in (a1111.hidden(metadata, "sd_v1") or "")


def lora_of(standard: layout.Sd1Layout, path: str) -> dict[str, Tensor]:
    """A LoRA of one layer of a published model, in kohya's names."""
    layer = next(one for one in sd1_base(standard).layers if one.path == path)
    rows, columns = layer.shape[:2]
    return kohya.to_kohya({path: LoraWeights(torch.ones(1, columns), torch.ones(rows, 1), 1)}, {path: layer.kohya})


def test_loras_of_either_kind_are_told_by_their_width_and_wrong_pairs_refused(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_base, lora = tiny.write_base(tmp_path / "sd1.safetensors"), tmp_path / "lora.safetensors"
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    for standard, other, name, wrong in (
        (STANDARD, base, "sd1", "this LoRA is for Stable Diffusion 1.x, the base model is Stable Diffusion 2.x"),
        (STANDARD_2, old_base, "sd2", "this LoRA is for Stable Diffusion 2.x, the base model is Stable Diffusion 1.x"),
    ):
        save_file(lora_of(standard, key), lora)
        assert read(lora).family is by_name(name)
        config = tiny.write_config(tmp_path, base_model=other, train_data_dir=data, init_lora=lora)
        assert main(["train", "--config", str(config)]) == 2
        assert wrong in capsys.readouterr().err
    save_file(lora_of(STANDARD_2, "text_encoder.encoder.layers.22.mlp.fc1"), lora)
    assert read(lora).family is FACTS


def test_a_lora_of_kohyas_with_convolutions_is_read(base: Path, family: Any, tmp_path: Path) -> None:
    """kohya's tools have the ways into and out of a transformer as 1 x 1 convolutions."""
    path, g = "unet.mid_block.attentions.0.proj_in", torch.Generator().manual_seed(5)
    flat = LoraWeights(torch.randn(2, 128, generator=g), torch.randn(128, 2, generator=g), 2)
    square = LoraWeights(flat.down[..., None, None], flat.up[..., None, None], 2)
    drawn = []
    for name, weights in (("flat", flat), ("square", square)):
        save_file(kohya.to_kohya({path: weights}, sd1_table()), tmp_path / f"{name}.safetensors")
        words = ["generate", "--base", base, "--size", "64", "--steps", "2", "--precision", "fp32", "--seed", "0"]
        words += ["--lora-dir", tmp_path, "--output", tmp_path / f"{name}.png", "--prompt", f"a <lora:{name}:9>"]
        assert main([str(word) for word in words]) == 0
        drawn.append(Image.open(tmp_path / f"{name}.png").tobytes())
    assert drawn[0] == drawn[1] != family.generate("a ", 0, Sampling(2, 7.0, "", (64, 64))).tobytes()


def test_each_weight_is_where_a_merge_looks_for_it(base: Path, family: Any) -> None:
    """q, k and v are thirds of one matrix in the file."""
    tensors, layers = load_file(base), family.trainable()
    found = FACTS.weights(read_header(base), base)
    assert layers.keys() <= found.keys()
    for path, layer in layers.items():
        key, share, _ = found[path]
        rows = share.rows(len(tensors[key])) if share else slice(None)
        assert torch.equal(tensors[key][rows], layer.weight), path


def test_relatives_are_named() -> None:
    shapes = {"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3), f"{TEXT}ln_final.bias": (16,)}
    assert check.kind_of(shapes, {}) is check.OTHER_2
    assert check.kind_of(shapes | {"model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3)}, {}) is (
        FACTS.checkpoint
    )


def test_programs_find_every_layer_under_its_name() -> None:
    """A1111 only whole attentions: q, k and v are one matrix there."""
    base = sd1_base(replace(tiny.LAYOUT, text_layers=2, second=True))
    layers = [layer for layer in base.layers if layer.kohya]
    weights = {}
    for one in layers:
        rows, columns, *kernel = one.shape
        weights[one.path] = LoraWeights(torch.ones(1, columns, *kernel), torch.ones(rows, 1, *(1 for _ in kernel)), 1)
    tensors = kohya.to_kohya(weights, {one.path: one.kohya for one in layers})
    for reader in (a1111, comfyui):
        assert reader.read(tensors, base).changes.keys() == weights.keys()
    one = {k: v for k, v in tensors.items() if "layers_1_self_attn_q_proj" in k}
    assert not a1111.read(one, base).changes and len(comfyui.read(one, base).changes) == 1
    stem = "text_encoders.clip_h.transformer.text_model.encoder.layers.1.self_attn.q_proj"
    generic = {f"{stem}.{key.partition('.')[2]}": value for key, value in one.items()}
    assert len(comfyui.read(generic, base).changes) == 1
    first = {key.replace("lora_te_", "lora_te1_"): value for key, value in tensors.items() if "lora_te_" in key}
    assert not a1111.read(first, base).changes and len(comfyui.read(first, base).changes) == 12
