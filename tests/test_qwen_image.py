"""Qwen-Image, on a narrow random model: numbers against diffusers' own modules, pipeline, scheduler and converters."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from safetensors.torch import load_file, save_file

import flow_checks
import tiny_flow
import tiny_qwen
import tiny_zimage
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.compute.memory import TILE, MemoryOptions
from lora_scripts.families.flow.autoencoder import VAE16
from lora_scripts.families.flow.film import MEAN, QWEN_VAE, STD
from lora_scripts.families.flow.still import Still
from lora_scripts.families.qwen_image import layout
from lora_scripts.families.qwen_image.check import FILES
from lora_scripts.families.sd.latents import LatentCoder
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from runs import faults

FACTS = by_name("qwen_image")

base, family = flow_checks.fixtures(FACTS, tiny_qwen)


@pytest.fixture(scope="module")
def theirs() -> QwenImagePipeline:
    return flow_checks.pipeline_of(QwenImagePipeline, tiny_qwen.models(), tiny_qwen.scheduler())


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    channels, height, width = x.shape[1:]
    tokens = theirs.transformer(
        hidden_states=theirs._pack_latents(x, 1, channels, height, width),
        timestep=sigma,
        encoder_hidden_states=theirs.encode_prompt([caption])[0],
        img_shapes=[[(1, height // 2, width // 2)]],
        return_dict=False,
    )[0]
    return theirs._unpack_latents(tokens, height * 8, width * 8, 8).squeeze(2)


def levels(theirs: Any, steps: int, tokens: int) -> None:
    """And one more, as good as 0: by the last their scheduler stretches the others."""
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    theirs.scheduler.set_timesteps(sigmas=[*np.linspace(1.0, 1 / steps, steps), 1e-9], mu=mu)


CASE = Case(FACTS, tiny_qwen, FILES, layout, answer, flow_checks.film_latents, levels)


def test_the_rows_of_the_published_widths_are_the_models_parameters() -> None:
    """As diffusers builds it without any argument: 20,430,401,088."""
    with torch.device("meta"):
        model = QwenImageTransformer2DModel()
    table = {row.hf: row.shape for row in layout.rows(layout.STANDARD)}
    assert table == {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert sum(math.prod(shape) for shape in table.values()) == 20_430_401_088
    assert all(model.config[key] == value for key, value in layout.config_of(layout.STANDARD).items())


def test_the_published_vae_is_theirs() -> None:
    from lora_scripts.families.flow.film import FilmLayout, rows

    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
    assert {row.hf: row.shape for row in rows(FilmLayout())} == {k: tuple(p.shape) for k, p in vae.state_dict().items()}
    assert (list(MEAN), list(STD)) == (list(vae.config.latents_mean), list(vae.config.latents_std))
    assert all(vae.config[key] == value for key, value in QWEN_VAE.config(FilmLayout()).items())


def test_the_template_names_what_stands_beside_the_base() -> None:
    config = flow_checks.template("qwen_image")
    assert config.text_encoder == (config.base_model,) and config.base_precision == "fp8"
    assert config.size == (1024, 1024)


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: QwenImagePipeline) -> None:
    """Without the first 34 tokens, by a model without its vision tower."""
    ours, (want, mask) = family.encode_text(PROMPTS), theirs.encode_prompt(list(PROMPTS))
    assert ours["states"].shape == want.shape and ours["lengths"].tolist() == mask.sum(1).tolist()
    assert ours["lengths"][0] > ours["lengths"][1] > 0
    assert (ours["states"] - want).abs().max() < 1e-4 * want.abs().max()
    assert not hasattr(family.encoder._model, "visual")


@torch.no_grad()
def test_a_caption_that_is_too_long_is_cut_and_told(family: Any, theirs: QwenImagePipeline) -> None:
    long = "hello how are you " * 160
    (ours,), want = family.encode_text([long])["states"], theirs.encode_prompt([long], max_sequence_length=512)[0]
    assert len(ours) == want.shape[1] == 512 and (ours - want).abs().max() < 1e-4 * want.abs().max()
    whole = theirs.tokenizer(theirs.prompt_template_encode.format(long))["input_ids"]
    assert family.encoder.excess(long) == len(whole) - 34 - 512 > 0 == family.encoder.excess("hello")


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 256, 4096, 6889])
@pytest.mark.parametrize("steps", [4, 50])
def test_the_levels_are_those_of_the_published_sampler(family: Any, tokens: int, steps: int) -> None:
    """By value; 6889 tokens are 1328 x 1328 pixels."""
    sigmas, own = family.objective.sigmas, tiny_qwen.SCHEDULER
    scheduler = FlowMatchEulerDiscreteScheduler(**own)
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = torch.tensor(sigmas.steps(steps, tokens))
    assert (ours - scheduler.sigmas[:-1]).abs().max() < 1e-6
    ends = sigmas.at(torch.tensor([1.0, 0.0], dtype=torch.float64), tokens)  # the noisiest in training, and the least
    assert (ends - scheduler.sigmas[[0, steps - 1]]).abs().max() < 1e-6 and ends[0] == 1.0


def test_a_folder_says_which_levels_its_sampler_has(tmp_path: Path) -> None:
    from lora_scripts.families.flow.levels import sigmas_of
    from lora_scripts.families.qwen_image.model import SIGMAS

    def folder(name: str, **settings: Any) -> Path:
        FlowMatchEulerDiscreteScheduler(**settings).save_pretrained(tmp_path / name / "scheduler")
        return tmp_path / name

    # As the few-step versions have it: log 3 for any size, and no terminal.
    few = {"use_dynamic_shifting": True, "base_shift": math.log(3), "max_shift": math.log(3)}
    for tokens in (256, 4096):
        assert sigmas_of(folder("few", **few), SIGMAS).factor(tokens) == pytest.approx(3)
    assert sigmas_of(folder("few", **few), SIGMAS).terminal == 0.0
    constant = sigmas_of(folder("constant", shift=2.5, shift_terminal=0.1), SIGMAS)
    assert (constant.factor(99), constant.terminal) == (2.5, 0.1)


def test_tokens_are_those_of_packed_latents(family: Any) -> None:
    latents = family.encode_image(torch.zeros(1, 3, 64, 96))["mean"]
    assert latents.shape == (1, 16, 8, 12) and family.tokens(latents) == 24


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: QwenImagePipeline) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, steps=20)


def test_a_neighbour_with_a_longer_caption_changes_nothing(family: Any) -> None:
    flow_checks.neighbour(family)


# --- the VAE ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_picture_goes_through_the_vae_as_a_film_of_one_frame(theirs: QwenImagePipeline) -> None:
    """With a third of each kernel, the same numbers as with all of it; tiles as theirs, of our size."""
    pixels = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(6)) * 2 - 1
    vae = theirs.vae
    still = Still(tiny_qwen.autoencoder())
    posterior, want = still.encode(pixels).latent_dist, vae.encode(pixels.unsqueeze(2)).latent_dist
    assert (posterior.mean - want.mean.squeeze(2)).abs().max() < 1e-4
    assert (posterior.std - want.std.squeeze(2)).abs().max() < 1e-4
    z = torch.randn(1, 16, 12, 8, generator=torch.Generator().manual_seed(7))
    assert (still.decode(z)[0].clamp(-1, 1) - vae.decode(z.unsqueeze(2)).sample.squeeze(2)).abs().max() < 1e-4
    seen, maps = LatentCoder(still, QWEN_VAE.normal(vae), OPTIONS.device, MemoryOptions()).features(pixels)
    assert seen.shape == (1, 16, 12, 8)
    assert [tuple(level.shape[1:]) for level in maps] == [(8, 48, 32), (16, 24, 16), (32, 12, 8), (32, 12, 8)]
    still.enable_tiling()
    film = still.film
    assert (film.tile_sample_min_height, film.tile_sample_stride_width) == (TILE, TILE * 3 // 4)
    wide = pixels.repeat(1, 1, 1, TILE // 64 + 1)
    tiled = LatentCoder(
        Still(tiny_qwen.autoencoder()), QWEN_VAE.normal(vae), OPTIONS.device, MemoryOptions(vae_tiling=True)
    )
    vae.enable_tiling(TILE, TILE, TILE * 3 // 4, TILE * 3 // 4)
    want = vae.encode(wide.unsqueeze(2)).latent_dist.mean.squeeze(2)
    vae.disable_tiling()
    mean, std = (torch.tensor(numbers).view(1, 16, 1, 1) for numbers in (MEAN, STD))
    assert (tiled.encode(wide)["mean"] - (want - mean) / std).abs().max() < 1e-4
    whole = LatentCoder(tiled.vae, QWEN_VAE.normal(vae), OPTIONS.device, MemoryOptions(vae_tiling=True)).features(wide)
    alone = LatentCoder(Still(tiny_qwen.autoencoder()), QWEN_VAE.normal(vae), OPTIONS.device, MemoryOptions()).features(
        wide
    )
    assert all(map(torch.equal, [whole[0], *whole[1]], [alone[0], *alone[1]])) and tiled.vae.film.use_tiling


@pytest.mark.parametrize("names", ["Wan's", "diffusers'"])
def test_the_vae_is_read_in_both_spellings(base: Path, tmp_path: Path, names: str) -> None:
    made, path = tiny_qwen.models().vae.state_dict(), base.parent / "qwen_image_vae.safetensors"
    if names == "diffusers'":
        path = tmp_path / "vae.safetensors"
        save_file({key: value.contiguous() for key, value in made.items()}, path)
    else:
        flow_checks.same(convert_wan_vae_to_diffusers(load_file(path)), made)
    state = QWEN_VAE.load(path, "Qwen-Image").film.state_dict()
    assert state.keys() == made.keys()
    for key, value in made.items():
        whole = value[:, :, -1:] if value.dim() == 5 and value.shape[2] == 3 else value
        assert torch.equal(state[key], whole), key


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 20.0])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: QwenImagePipeline, cfg: float) -> None:
    """The answer that is led away keeps its length at each place; without that the picture is off by 10 of 255."""

    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        more = {"true_cfg_scale": cfg, "negative_prompt": "hello"}
        return theirs(PROMPTS[0], latents=theirs._pack_latents(noise, *noise.shape), **more, **size).images[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative="hello")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_goes_into_the_model_and_back(tmp_path: Path, prefix: str) -> None:
    path = tiny_qwen.write_base(tmp_path / "base.safetensors", prefix=prefix)
    flow_checks.one_file(CASE, path, prefix, tiny_qwen.models().transformer)


@torch.no_grad()
def test_a_file_in_fp16_and_one_in_fp8_with_scales_are_read(base: Path, tmp_path: Path) -> None:
    half = tiny_qwen.write_base(tmp_path / "half.safetensors", dtype=torch.float16)
    assert FILES.load(half, torch.float32).img_in.weight.dtype == torch.float16
    tensors, key = load_file(base), "transformer_blocks.0.attn.to_q.weight"
    scale = tensors[key].abs().max() / 448
    tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
    stem = key.removesuffix(".weight")
    more = {f"{stem}.scale_weight": scale, f"{stem}.scale_input": scale.clone(), "scaled_fp8": torch.zeros(2)}
    save_file({**tensors, **more}, tmp_path / "fp8.safetensors")
    FACTS.check(tmp_path / "fp8.safetensors", False)
    state = FILES.load(tmp_path / "fp8.safetensors", torch.float32).state_dict()
    assert torch.equal(state[key], tensors[key].float() * scale)


@torch.no_grad()
def test_a_text_encoder_in_fp8_with_scales_is_read(base: Path, family: Any, tmp_path: Path) -> None:
    """As ComfyUI ships it: scales beside what nobody reads, too."""
    tensors = load_file(base.parent / "text" / "qwen_2.5_vl_7b.safetensors")
    keys = [k for k, v in tensors.items() if k.endswith("proj.weight") and v.dim() == 2] + ["lm_head.weight"]
    for key in keys:
        scale = tensors[key].abs().max() / 448
        tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
        stem = key.removesuffix(".weight")
        tensors |= {f"{stem}.scale_weight": scale, f"{stem}.scale_input": scale.clone()}
    save_file({**tensors, "scaled_fp8": torch.zeros(0)}, tmp_path / "fp8.safetensors")
    shutil.copy(base.parent / "text" / "tokenizer.json", tmp_path)
    assert FACTS.check_text is not None
    FACTS.check_text(base, [tmp_path / "fp8.safetensors"])
    parts: Any = {**tiny_qwen.beside(base.parent), "text_encoder": [tmp_path / "fp8.safetensors"]}
    ours = load_family(FACTS, base, replace(OPTIONS, **parts)).encode_text(PROMPTS)["states"]
    want = family.encode_text(PROMPTS)["states"]
    assert 0 < (ours - want).abs().max() < 0.2 * want.abs().max()


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_qwen.beside) == []


def test_relatives_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base)

    def told(name: str, **more: torch.Tensor) -> str:
        save_file({**tensors, **more}, tmp_path / f"{name}.safetensors")
        return identify(tmp_path / f"{name}.safetensors").words

    one = torch.zeros(1)
    assert "Layered" in told("layered", **{"time_text_embed.addition_t_embedding.weight": torch.zeros(2, 32)})
    assert "SVDQuant" in told("four", **{"transformer_blocks.0.attn.to_qkv.qweight": one})
    assert told("control", **{"controlnet_blocks.0.weight": one}) == "a ControlNet"
    (tmp_path / "qwen.gguf").write_bytes(b"GGUF\x03" + bytes(19))
    assert "GGUF" in identify(tmp_path / "qwen.gguf").words
    folder = tiny_qwen.write_folder(tmp_path / "layered", pipeline="QwenImageLayeredPipeline")
    assert "(Layered)" in identify(folder).words
    assert "give Qwen-Image or Qwen-Image-2512" in faults(lambda: find(folder))


def test_parts_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    check_text, parts = FACTS.check_text, tiny_qwen.beside(base.parent)
    assert check_text is not None
    assert "(such as qwen_2.5_vl_7b.safetensors)" in faults(lambda: check_text(base, ()))
    assert "add vae: the file qwen_image_vae.safetensors" in faults(lambda: FACTS.check(base, True))
    qwen3 = tiny_flow.write_text(
        tmp_path / "three" / "qwen_3.safetensors", tiny_flow.Models(0, 0, *tiny_flow.language())
    )
    assert "this is no Qwen2.5-VL text encoder" in faults(lambda: check_text(base, [qwen3]))
    zimage = tiny_zimage.write_base(tmp_path / "zimage.safetensors")
    of_zimage, text = by_name("zimage").check_text, base.parent / "text" / "qwen_2.5_vl_7b.safetensors"
    assert of_zimage is not None
    assert "this is no Qwen3 text encoder" in faults(lambda: of_zimage(zimage, [text]))
    narrow = load_file(base)
    narrow["txt_in.weight"] = torch.zeros(32, 128)
    narrow["txt_norm.weight"] = torch.zeros(128)
    save_file(narrow, tmp_path / "narrow.safetensors")
    told = faults(lambda: check_text(tmp_path / "narrow.safetensors", [text]))
    assert "gives states of width 256, the base reads 128" in told
    # VAEs
    vae = Path(str(parts["vae"]))
    assert "this is only a VAE of films, not a VAE of Z-Image" in faults(lambda: VAE16.check(vae, "Z-Image"))
    made = tiny_qwen.models().vae
    made.save_pretrained(tmp_path / "film")
    assert "this is only a VAE of films" in faults(lambda: VAE16.check(tmp_path / "film", "Z-Image"))
    ae, folder = tmp_path / "ae.safetensors", tmp_path / "vae"
    tiny_flow.autoencoder().save_pretrained(folder)
    for path in (ae, folder):
        told = faults(lambda path=path: FACTS.check_vae(path))  # type: ignore[misc]
        assert "a VAE of pictures alone, not the VAE of Qwen-Image" in told
    clear = tiny_qwen.autoencoder(input_channels=4)
    save_file({key: value.contiguous() for key, value in clear.state_dict().items()}, tmp_path / "clear.safetensors")
    assert "this VAE has transparency" in faults(lambda: FACTS.check_vae(tmp_path / "clear.safetensors"))


# --- LoRA files -------------------------------------------------------------------------------------------------------


def lora_of(alpha: float = 0.5) -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_qwen.models().transformer, alpha=alpha)


@pytest.mark.parametrize("naming", ["own", "kohya"])
def test_diffusers_draws_with_the_file_what_we_draw(
    family: Any, theirs: QwenImagePipeline, tmp_path: Path, naming: str
) -> None:
    weights = lora_of()
    form = dialects.own_form(weights, FACTS.names(), torch.float32)
    tensors = form.tensors if naming == "own" else kohya.to_kohya(weights, FACTS.names().kohya, dtype=torch.float32)
    assert any(key.endswith(".alpha") for key in tensors) == (naming == "kohya")
    save(tmp_path / "lora.safetensors", tensors, form.metadata if naming == "own" else {})
    flow_checks.drawn_with(CASE, family, theirs, weights, tmp_path / "lora.safetensors")


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    """Under names written by hand from what it asks a LoRA of Qwen-Image for."""
    layers = [k.removesuffix(".weight") for k, v in tiny_qwen.models().transformer.state_dict().items() if v.dim() == 2]
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert stems == {f"transformer.{name}" for name in layers} and len(stems) == 2 * 14 + 6
    flat = kohya.to_kohya(lora_of(), FACTS.names().kohya, dtype=torch.float32)
    assert {k.partition(".")[0] for k in flat} == {f"lora_unet_{name.replace('.', '_')}" for name in layers}
    bare = {key.replace("transformer.", "", 1): value for key, value in form.tensors.items()}
    toolkit = {f"diffusion_model.{key}": value for key, value in bare.items()}
    studio = {key.replace(".weight", ".default.weight"): value for key, value in bare.items()}
    for tensors in (form.tensors, flat, bare, toolkit, studio):
        reading = comfyui.read(tensors, FACTS.base(base))
        assert not reading.faults and reading.changes.keys() == lora_of().keys()


@pytest.mark.parametrize("dress", ["musubi-tuner", "ai-toolkit", "PEFT", "DiffSynth"])
def test_a_lora_of_another_trainer_is_read(tmp_path: Path, dress: str) -> None:
    tensors, path = {}, tmp_path / "theirs.safetensors"
    for name, w in lora_of(alpha=2.0).items():
        stem = name.removeprefix("transformer.")
        if dress == "musubi-tuner":
            flat = f"lora_unet_{stem.replace('.', '_')}"
            tensors |= {f"{flat}.lora_down.weight": w.down, f"{flat}.lora_up.weight": w.up}
            tensors[f"{flat}.alpha"] = torch.tensor(1.0)
            continue
        start = {"ai-toolkit": "diffusion_model.", "PEFT": "transformer.", "DiffSynth": ""}[dress]
        end = "default.weight" if dress == "DiffSynth" else "weight"
        tensors |= {f"{start}{stem}.lora_A.{end}": w.down, f"{start}{stem}.lora_B.{end}": w.up}
    save(path, tensors, {})
    file, want = read(path), lora_of(alpha=1.0 if dress == "musubi-tuner" else 2.0)
    assert file.family is FACTS and file.weights.keys() == want.keys()
    for name, w in want.items():
        assert torch.allclose(factors.of(file.weights[name]).dense(), factors.of(w).dense()), name


def test_a_lora_of_another_model_with_the_same_names_is_not_taken_for_it(tmp_path: Path) -> None:
    """The attention of several diffusion transformers bears the same names, for fewer blocks."""

    def file(blocks: int, **metadata: str) -> Path:
        stems = [f"transformer.transformer_blocks.{n}.attn.to_q" for n in range(blocks)]
        tensors = {f"{stem}.lora_{one}.weight": torch.ones(2, 2) for stem in stems for one in "AB"}
        save(tmp_path / f"{blocks}.safetensors", tensors, metadata)
        return tmp_path / f"{blocks}.safetensors"

    assert family_of(file(24)) is by_name("sd3")
    assert "this is a LoRA for a diffusion transformer that is not known here" in faults(lambda: family_of(file(61)))
    assert family_of(file(60)) is FACTS
    assert family_of(file(24, ss_base_model_version="qwen_image")) is FACTS
    # Our own of its attention alone says what it is for.
    attention = {path: w for path, w in lora_of().items() if ".attn." in path}
    form = dialects.own_form(attention, FACTS.names(), torch.float32)
    save(tmp_path / "own.safetensors", form.tensors, {**form.metadata, "ss_base_model_version": "qwen_image"})
    assert read(tmp_path / "own.safetensors").family is FACTS
    assert "this LoRA is for Qwen-Image, the base model is SDXL" in faults(lambda: read(file(60), by_name("sdxl")))


@pytest.mark.parametrize("adapter", ["lora", "lokr"])
def test_a_folder_with_a_stored_base_and_recomputed_blocks_trains(data: Path, tmp_path: Path, adapter: str) -> None:
    flow_checks.trained(tiny_qwen.write_folder(tmp_path / "base"), data, tmp_path, adapter=adapter)


def test_a_text_encoder_that_does_not_fit_comes_block_by_block(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_checks.block_by_block(family, monkeypatch)
