"""Stable Diffusion 1.x as loaded, against the diffusers and transformers models that its files were written from."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import tiny
from families import BETAS, loss_is_diffusers
from lora_scripts.cli import main
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.base import LoadOptions, Sampling
from lora_scripts.families.clip import prompts
from lora_scripts.families.clip.tokenizer import _vocabulary, clip_tokenizer
from lora_scripts.families.sd.encoder import TextEncoder
from lora_scripts.families.sd.vae import VAE_PREFIX
from lora_scripts.families.sd1 import singlefile
from lora_scripts.families.sd1.layout import text_config
from lora_scripts.families.table import by_name, load_family
from lora_scripts.formats import io

FP32 = LoadOptions(torch.device("cpu"), torch.float32)
CAPTIONS = ["", "a photo of a cat", "1girl, (night:1.2), 霓虹 city — ünïcode 🐈", "word " * 100]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    return tiny.models()


@pytest.fixture(scope="module")
def folder(models: tuple[Any, Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a diffusers folder."""
    path = tmp_path_factory.mktemp("diffusers")
    for name, model in zip(("unet", "vae", "text_encoder"), models, strict=True):
        model.save_pretrained(path / name)
    return path


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_clip_skip_is_the_state_so_many_layers_from_the_end_after_the_final_norm(skip: int) -> None:
    """In a text encoder of four layers, whose norm changes what goes through it: by transformers' own list of states,
    and by an encoder that has only so many layers."""
    torch.manual_seed(0)
    config = CLIPTextConfig(**{**text_config(tiny.LAYOUT), "num_hidden_layers": 4})
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "final_layer_norm" in name:
                p.add_(torch.randn(p.shape))
    rows = [prompts.chunks(prompts.plain("a city at night"))]
    ids = torch.tensor([rows[0][0].ids])
    inner = getattr(model, "text_model", model)
    with torch.no_grad():
        wanted = inner.final_layer_norm(model(ids, output_hidden_states=True).hidden_states[4 - skip + 1])
        found = TextEncoder(model, torch.device("cpu"), MemoryOptions()).encode(rows, 1, skip, normed=True).states
        inner.encoder.layers = inner.encoder.layers[: 4 - skip + 1]
        cut = model(ids).last_hidden_state
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, cut)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@torch.no_grad()
def test_the_loss_is_that_of_diffusers_modules_and_schedulers(
    kind: str, base: Path, models: tuple[Any, Any, Any]
) -> None:
    unet, vae, text = models
    vocabulary, merges = _vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    pipe = StableDiffusionPipeline(
        vae, text, tokenizer, unet, DDPMScheduler(**BETAS), None, None, requires_safety_checker=False
    )
    captions = ["", "a photo of a cat, 1girl — ünïcode 🐈"]
    states, _ = pipe.encode_prompt(captions, torch.device("cpu"), 1, False)
    loaded = load_family(by_name("sd1"), base, replace(FP32, settings={"prediction": kind}))
    loss_is_diffusers(loaded, kind, unet, states, captions)


def latents() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([5, 900]), torch.randn(2, 77, 16, generator=g)


def pixels() -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def same_weights(left: nn.Module, right: nn.Module, through: torch.dtype = torch.float32) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k].to(through).to(a[k].dtype)) for k in a)


@torch.no_grad()
def test_a_single_file_is_the_model_that_it_was_written_from(family: Any, models: tuple[Any, Any, Any]) -> None:
    unet, vae, text = models
    loaded = (family.unet, family.vae, family.text_encoder)
    assert all(same_weights(a, b) for a, b in zip(loaded, models, strict=True))
    assert not any(p.requires_grad for m in loaded for p in m.parameters()) and not any(m.training for m in loaded)

    x, t, states = latents()
    exact = copy.deepcopy(unet).double()(x.double(), t, states.double()).sample.float()
    # float32 is 1.3e-4 off it, whoever computes: norms of maps of one pixel make much of a rounding
    torch.testing.assert_close(family.predict(x, t, states), exact, rtol=5e-4, atol=5e-4)
    moments, posterior = family.encode_image(pixels()), vae.encode(pixels()).latent_dist
    assert torch.equal(moments["mean"], posterior.mean * 0.18215) and torch.equal(
        moments["std"], posterior.std * 0.18215
    )
    ids = clip_tokenizer()(
        CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(family.encode_text(CAPTIONS)["states"], text(ids).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_and_ema_copies(
    dtype: torch.dtype, base: Path, models: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    tensors = {name: value.to(dtype) for name, value in load_file(base).items()}
    ema = {f"model_ema.{k.removeprefix('model.').replace('.', '')}": torch.zeros_like(v) for k, v in tensors.items()}
    # As v1-5-pruned has them: buffers of the schedule and of the text encoder, which nobody needs.
    more = {
        "betas": torch.zeros(1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77),
    }
    io.save_safetensors(tmp_path / "half.safetensors", {**tensors, **ema, **more})
    loaded = load_family(by_name("sd1"), tmp_path / "half.safetensors", FP32)
    parts = (loaded.unet, loaded.vae, loaded.text_encoder)
    assert all(same_weights(a, b, through=dtype) for a, b in zip(parts, models, strict=True))
    assert {p.dtype for m in parts for p in m.parameters()} == {torch.float32}


def test_captions_that_an_earlier_version_encoded_are_not_taken_for_todays(family: Any) -> None:
    """It cut long ones off at a comma, under these names in the cache."""
    assert family.fingerprint("text") not in (
        family.encoder.digest("text encoder", ""),
        family.encoder.digest("text encoder", "clip skip 1, 75 tokens"),
    )


@torch.no_grad()
def test_a_diffusers_folder_is_the_same_as_the_file(family: Any, folder: Path) -> None:
    other = load_family(by_name("sd1"), folder, FP32)
    x, t, states = latents()
    assert torch.equal(other.predict(x, t, states), family.predict(x, t, states))
    assert torch.equal(other.encode_image(pixels())["mean"], family.encode_image(pixels())["mean"])
    assert torch.equal(other.encode_text(CAPTIONS)["states"], family.encode_text(CAPTIONS)["states"])
    assert [other.fingerprint(p) for p in ("vae", "text")] == [family.fingerprint(p) for p in ("vae", "text")]
    assert other.trainable().keys() == family.trainable().keys()


@pytest.mark.parametrize("form", ["diffusers folder", "ldm file", "diffusers file"])
def test_a_separate_vae_takes_the_place_of_the_checkpoints(form: str, base: Path, family: Any, tmp_path: Path) -> None:
    _, vae, _ = tiny.models(seed=9)
    if form == "diffusers folder":
        vae.save_pretrained(tmp_path / "vae")
    path = {"diffusers folder": tmp_path / "vae", "diffusers file": tmp_path / "vae" / "d.safetensors"}.get(form)
    if form == "diffusers file":
        (tmp_path / "vae").mkdir()
        assert path is not None
        io.save_safetensors(path, vae.state_dict())
    if path is None:
        path = tmp_path / "ldm.safetensors"
        unet, _, text = tiny.models()
        whole = singlefile.to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict())
        mine = {k.removeprefix(VAE_PREFIX): v for k, v in whole.items() if k.startswith(VAE_PREFIX)}
        io.save_safetensors(path, mine)
    # The checkpoint's own is not even needed.
    tensors = {k: v for k, v in load_file(base).items() if not k.startswith(VAE_PREFIX)}
    io.save_safetensors(tmp_path / "without.safetensors", tensors)
    loaded = load_family(by_name("sd1"), tmp_path / "without.safetensors", LoadOptions(FP32.device, FP32.dtype, path))
    assert same_weights(loaded.vae, vae) and same_weights(loaded.unet, family.unet)
    assert loaded.fingerprint("vae") != family.fingerprint("vae")
    assert loaded.fingerprint("text") == family.fingerprint("text")


def test_the_tokenizer_is_the_published_one(tmp_path: Path) -> None:
    """vocab.json and merges.txt as OpenAI's simple_tokenizer.py orders them, read by the library's own loader."""
    raw = resources.files("lora_scripts.families").joinpath("assets/clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(raw).decode().splitlines()
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [chr(c) for c in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = characters + [c + "</w>" for c in characters] + [m.replace(" ", "") for m in merges]
    vocabulary = {word: n for n, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    assert len(merges) == 48894 and len(vocabulary) == 49408
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    official, ours = CLIPTokenizer.from_pretrained(tmp_path), clip_tokenizer()
    texts = [
        *CAPTIONS,
        "Don't  STOP\n\tme   now!!! 3.14 <|endoftext|>",
        "naïve café, ÀÉ",
        "مرحبا 🧑‍🚀 \u200b x",
        "don’t_1234567",
    ]
    for text in texts:
        assert ours(text).input_ids == official(text).input_ids, text
    padded = ours(CAPTIONS, padding="max_length", max_length=77, truncation=True).input_ids
    assert padded == official(CAPTIONS, padding="max_length", max_length=77, truncation=True).input_ids
    # As published: "a photo of a cat", filled up with the end token.
    assert padded[1] == [49406, 320, 1125, 539, 320, 2368, 49407, *[49407] * 70]
    assert len(padded[3]) == 77 and padded[3][-1] == 49407


def test_bf16_keeps_the_vae_and_the_text_encoder_in_float32(base: Path) -> None:
    loaded = load_family(by_name("sd1"), base, LoadOptions(FP32.device, torch.bfloat16))
    kinds = {name: {p.dtype for p in getattr(loaded, name).parameters()} for name in ("unet", "vae", "text_encoder")}
    assert kinds == {"unet": {torch.bfloat16}, "vae": {torch.float32}, "text_encoder": {torch.float32}}
    x, t, states = latents()
    with torch.no_grad():
        assert loaded.predict(x, t, states).dtype == torch.bfloat16


def test_pictures_are_functions_of_prompt_and_seed(family: Any) -> None:
    small = Sampling(steps=2, cfg=3.0, size=(64, 128))
    one = family.generate("a house", 1, small)
    assert one.size == (64, 128) and one.mode == "RGB"
    assert np.array_equal(one, family.generate("a house", 1, small))
    for other in (("a house", 2, small), ("a tree", 1, small), ("a house", 1, Sampling(2, 3.0, "a tree", (64, 128)))):
        assert not np.array_equal(one, family.generate(*other))


def as_lora(base: Path) -> bytes:
    tensors = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 64, 1, 1)}
    return io_bytes({**tensors, "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(64, 2, 1, 1)})


def io_bytes(tensors: dict[str, Tensor]) -> bytes:
    head, parts = io.safetensors_parts(tensors)
    return head + b"".join(bytes(part) for part in parts)


def without_text(base: Path) -> bytes:
    return io_bytes({k: v for k, v in load_file(base).items() if not k.startswith("cond_stage_model.")})


def one_missing(base: Path) -> bytes:
    return io_bytes({k: v for k, v in load_file(base).items() if k != "model.diffusion_model.time_embed.0.weight"})


def as_refiner(base: Path) -> bytes:
    return io_bytes({**load_file(base), "conditioner.embedders.0.model.x.weight": torch.ones(1)})


def as_sd2_inpainting(base: Path) -> bytes:
    tensors = {k: v for k, v in load_file(base).items() if not k.startswith("cond_stage_model.")}
    wide = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}
    return io_bytes({**tensors, **wide, "cond_stage_model.model.ln_final.bias": torch.ones(1)})


WRONG: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "SD 2.x inpainting": (
        as_sd2_inpainting,
        "this is a Stable Diffusion 2.x for inpainting, depth or enlarging (more than 4 input channels); give",
    ),
    "SDXL refiner": (as_refiner, "this is an SDXL refiner; give the SDXL base, such as sd_xl_base_1.0.safetensors"),
    "LoRA": (as_lora, "this is a LoRA; give it as init_lora"),
    "truncated": (lambda base: base.read_bytes()[:-5], "truncated: 15,06"),
    "short": (lambda base: base.read_bytes()[:1000], "truncated: 1,000 of"),
    "git-lfs": (
        lambda base: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 4265146304\n",
        "this is a git-lfs pointer, not the model itself; run `git lfs pull`",
    ),
    "HTML": (lambda base: b"<!DOCTYPE html><html><body>log in</body></html>", "this is a web page, not a model"),
    "zip": (lambda base: b"PK\x03\x04" + bytes(100), "this is a PyTorch .ckpt/.pt/.bin file"),
    "empty": (lambda base: b"", "this is an empty file"),
    "no text encoder": (without_text, "the file holds no text encoder; give the full checkpoint"),
    "one missing": (one_missing, "1 of 684 tensors of the UNet are missing: model.diffusion_model.time_embed.0.weight"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_one_line_and_exit_code_2(
    kind: str, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, line = WRONG[kind]
    (tmp_path / "base.safetensors").write_bytes(make(base))
    config = tiny.write_config(tmp_path, train_data_dir=data)
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'base.safetensors'}: {line}") and told.count("\n") == 1
    # Nothing stands in the way of a second start with another file.
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_ckpt_is_refused_with_the_way_to_convert_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.ckpt").write_bytes(b"PK\x03\x04")
    config = tiny.write_config(tmp_path, train_data_dir=data, base_model=tmp_path / "base.ckpt")
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert "base_model" in told and "pickle" in told and "convert it to base.safetensors" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("unet", "text", "words"),
    [
        (
            {"use_linear_projection": True, "in_channels": 9},
            "text_encoder",
            "this is a Stable Diffusion 2.x for inpainting, depth or enlarging (more than 4 input channels); give",
        ),
        ({}, "text_encoder_2", "this is an SDXL refiner; give the SDXL base"),
    ],
    ids=["SD 2.x inpainting", "SDXL refiner"],
)
def test_a_folder_of_another_family_is_refused(
    unet: dict[str, object], text: str, words: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("unet", "vae", text):
        (tmp_path / "base" / part).mkdir(parents=True)
        (tmp_path / "base" / part / "config.json").write_text(json.dumps(unet))
    config = tiny.write_config(tmp_path, train_data_dir=data, base_model=tmp_path / "base")
    assert main(["train", "--config", str(config)]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_its_parts_is_refused(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base" / "unet").mkdir(parents=True)
    config = tiny.write_config(tmp_path, train_data_dir=data, base_model=tmp_path / "base")
    assert main(["train", "--config", str(config)]) == 2
    assert "has no unet/config.json, text_encoder/config.json, vae/config.json" in capsys.readouterr().err
