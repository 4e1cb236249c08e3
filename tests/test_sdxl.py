"""SDXL as loaded, against diffusers' own modules, schedulers and pipeline put together here."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

import tiny
import tiny_xl
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError
from lora_scripts.families.base import Batch, LoadOptions, Place, Sampling
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.sd1.names import sd1
from lora_scripts.families.sdxl import model
from lora_scripts.families.sdxl.names import sdxl
from lora_scripts.families.table import by_name, least_pixels, settings
from lora_scripts.formats import io
from lora_scripts.formats.header import read_header
from lora_scripts.loras import kohya
from lora_scripts.loras.consumers import a1111
from lora_scripts.loras.words import read_words
from lora_scripts.losses.noise import Draws, draw
from lora_scripts.run.build import build_model

CPU = torch.device("cpu")
FP32 = LoadOptions(CPU, torch.float32)
CAPTIONS = ["", "a photo of a cat, 1girl — ünïcode 🐈", "word " * 100]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.fixture(scope="module")
def models() -> tiny_xl.Models:
    return tiny_xl.models()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_xl.write_base(tmp_path_factory.mktemp("xl") / "xl.safetensors")


@pytest.fixture(scope="module")
def family(base: Path) -> Any:
    return model.load(base, FP32)


@pytest.fixture(scope="module")
def pipe(models: tiny_xl.Models) -> StableDiffusionXLPipeline:
    """diffusers' own, with tokenizers as published: the second pads with an exclamation mark."""
    tokenizer = clip_tokenizer()
    other = CLIPTokenizer(vocab=tokenizer.get_vocab(), merges=merges(), model_max_length=77, pad_token="!")
    scheduler = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    unet, vae, text, text_2 = models
    pipe = StableDiffusionXLPipeline(vae, text, text_2, tokenizer, other, unet, scheduler, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def merges() -> list[tuple[str, str]]:
    from lora_scripts.families.clip.tokenizer import _vocabulary

    return _vocabulary()[1]


@torch.no_grad()
def test_prompts_are_what_the_pipeline_makes_of_them(family: Any, pipe: StableDiffusionXLPipeline) -> None:
    ours = family.encode_text(CAPTIONS)
    states, _, pooled, _ = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours["states"], states, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["pooled"], pooled, rtol=1e-5, atol=1e-6)
    assert ours["states"].shape == (3, 77, 40) and ours["pooled"].shape == (3, 24)


def test_clip_skip_counts_as_people_do(base: Path, pipe: StableDiffusionXLPipeline) -> None:
    """Left alone and 2 are the layer before the last; diffusers counts from there."""
    usual, two, three = (model.load(base, replace(FP32, settings={"clip_skip": n})) for n in (1, 2, 3))
    states = [f.encode_text(["a cat"])["states"] for f in (usual, two, three)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
    with torch.no_grad():
        theirs = pipe.encode_prompt("a cat", do_classifier_free_guidance=False, clip_skip=1)[0]
    torch.testing.assert_close(states[2], theirs, rtol=1e-5, atol=1e-6)
    assert usual.fingerprint("text") == two.fingerprint("text") != three.fingerprint("text")
    before = [encoder.digest(name, f"layer {two._layer}, 75 tokens") for name, encoder in two.encoders.items()]
    assert two.fingerprint("text") != " ".join(before)  # an earlier version cut long captions off at a comma
    with pytest.raises(UserError, match="clip_skip 4: this text encoder has 3 layers"):
        model.load(base, replace(FP32, settings={"clip_skip": 4})).encode_text(["a cat"])


@torch.no_grad()
def test_long_and_weighted_prompts(family: Any, base: Path) -> None:
    """Chunk beside chunk, each with its own start and end; the pooled state is the first chunk's, as in WebUIs."""
    long = model.load(base, replace(FP32, settings={"caption_tokens": 225}))
    one, three = family.encode_text(["word " * 100]), long.encode_text(["word " * 100])
    assert three["states"].shape == (1, 231, 40)
    torch.testing.assert_close(three["states"][:, :77], one["states"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(three["pooled"], one["pooled"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(three["states"][:, 154:], family.encode_text([""])["states"], rtol=1e-5, atol=1e-6)
    plain, heavy = (family._texts([[("a ", 1.0), ("cat", weight)]]) for weight in (1.0, 1.5))
    assert torch.equal(plain["pooled"], heavy["pooled"]) and not torch.equal(plain["states"], heavy["states"])
    for part in (slice(0, 16), slice(16, 40)):  # each encoder's states keep their mean
        torch.testing.assert_close(heavy["states"][..., part].mean(), plain["states"][..., part].mean())


PLACES = (Place((640, 480), (8, 16), (64, 64)), Place((64, 96), (0, 0), (64, 64)))


def batch_of(family: Any, texts: Mapping[str, Tensor] | None) -> tuple[Batch, Draws]:
    g = torch.Generator().manual_seed(3)
    latents = {"mean": torch.randn(2, 4, 8, 8, generator=g), "std": 0.1 * torch.rand(2, 4, 8, 8, generator=g)}
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    places = torch.stack([place.numbers() for place in PLACES])
    batch = Batch(latents, CAPTIONS[:2], texts, ["a", "b"], generators, places)
    return batch, draw((2, 4, 8, 8), [torch.Generator().manual_seed(seed) for seed in (1, 2)])


@pytest.mark.parametrize("kind", ["epsilon", "v", "zero terminal SNR"])
@torch.no_grad()
def test_the_loss_is_that_of_diffusers_modules_and_schedulers(
    kind: str, base: Path, models: tiny_xl.Models, pipe: StableDiffusionXLPipeline
) -> None:
    """At drawn noise levels, and at the first and the last."""
    v, zero = kind != "epsilon", kind == "zero terminal SNR"
    settings = {"prediction": "v" if v else "epsilon", "zero_terminal_snr": zero}
    family = model.load(base, replace(FP32, settings=settings))
    kinds = {"prediction_type": "v_prediction" if v else "epsilon", "rescale_betas_zero_snr": zero}
    scheduler = DDPMScheduler(**BETAS, **kinds)
    states, _, pooled, _ = pipe.encode_prompt(CAPTIONS[:2], do_classifier_free_guidance=False)
    ids = torch.tensor([[480, 640, 16, 8, 64, 64], [96, 64, 0, 0, 64, 64]], dtype=torch.float32)
    batch, draws = batch_of(family, family.encode_text(CAPTIONS[:2]))
    for u in (draws.u, torch.tensor([0.0, 0.9999999]).double(), torch.tensor([0.001, 0.5]).double()):
        drawn = replace(draws, u=u)
        t = (u * 1000).floor().long()
        x0 = batch.latents["mean"] + batch.latents["std"] * drawn.posterior
        wanted = scheduler.get_velocity(x0, drawn.noise, t) if v else drawn.noise
        more = {"text_embeds": pooled, "time_ids": ids}
        out = models.unet(scheduler.add_noise(x0, drawn.noise, t), t, states, added_cond_kwargs=more).sample
        theirs = (out - wanted).square().mean((1, 2, 3))
        torch.testing.assert_close(family.losses(batch, family.objective, drawn), theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(family.missed(batch, family.objective, drawn), wanted - out, rtol=1e-4, atol=1e-5)
    if zero:  # the last level is noise alone
        levels, times = model.steps.schedule_of(family.objective).at(torch.tensor([0.9999999]).double(), CPU)
        assert levels.signal.item() == 0 and times.item() == 999


def test_a_step_draws_what_its_generators_say(family: Any) -> None:
    batch, draws = batch_of(family, family.encode_text(CAPTIONS[:2]))
    total, count = family.loss(batch, family.objective)
    assert count == 2
    torch.testing.assert_close(total, family.losses(batch, family.objective, draws).sum())


@pytest.mark.parametrize(("cfg", "size"), [(5.0, (64, 96)), (1.0, (64, 64))])
def test_pictures_are_those_of_the_pipeline(
    cfg: float, size: tuple[int, int], family: Any, pipe: StableDiffusionXLPipeline
) -> None:
    noise = torch.randn(1, 4, size[1] // 8, size[0] // 8, generator=torch.Generator().manual_seed(7))
    ours = family.generate("a house", 7, Sampling(3, cfg, "ugly", size))
    theirs = pipe(
        "a house",
        negative_prompt="ugly",
        guidance_scale=cfg,
        num_inference_steps=3,
        latents=noise,
        width=size[0],
        height=size[1],
    ).images[0]
    assert ours.size == size
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 2


def test_pictures_with_v_and_zero_terminal_snr(base: Path, pipe: StableDiffusionXLPipeline) -> None:
    family = model.load(base, replace(FP32, settings={"prediction": "v", "zero_terminal_snr": True}))
    kinds = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    usual, pipe.scheduler = pipe.scheduler, DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, **kinds)
    try:
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        sizes = {"width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 1.0}
        theirs = pipe("a house", latents=noise, **sizes).images[0]
    finally:
        pipe.scheduler = usual
    ours = family.generate("a house", 7, Sampling(3, 1.0, "", (64, 64)))
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 2


def test_pictures_drawn_together_and_from_a_picture(family: Any) -> None:
    small = Sampling(2, 3.0, "", (64, 64))
    together = family.draw("a house", [1, 2], small)
    for seed, picture in zip((1, 2), together, strict=True):
        alone = family.generate("a house", seed, small)
        assert np.abs(np.asarray(picture, int) - np.asarray(alone, int)).max() <= 1
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1
    from_it = family.generate("a house", 1, replace(small, start=pixels, denoise=0.5))
    assert from_it.tobytes() != together[0].tobytes()


def test_both_text_encoders_learn(base: Path) -> None:
    """All of the second, whose pooled state is its last layer's; of the first, what comes before its last layer."""
    family = model.load(base, FP32)
    layers = family.trainable()
    assert {path.partition(".")[0] for path in layers} == {"unet", "text_encoder", "text_encoder_2"}
    assert not any("text_projection" in path or "embedding" in path for path in layers)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    batch, _ = batch_of(family, None)
    family.loss(batch, family.objective)[0].backward()
    idle = {path for path, layer in layers.items() if layer.weight.grad is None}
    assert idle == {path for path in layers if path.startswith("text_encoder.encoder.layers.2.")}


def test_new_words_have_vectors_for_both(base: Path) -> None:
    family = model.load(base, FP32)
    plain = family.encode_text(["a sks cat"])
    start = family.vectors_of("a dog")
    assert start.shape == (2, 40)
    assert torch.equal(start[:, 16:], family.encoder_2.model.text_model.embeddings.token_embedding.weight[[320, 1929]])
    words = {"sks": nn.Parameter(start[:1].clone())}
    family.set_words(words)
    with torch.no_grad():  # a word with another's vectors is that word, in the pooled state too
        one, other = family.encode_text(["a sks cat"]), family.encode_text(["a a cat"])
    assert all(torch.equal(one[name], other[name]) for name in one) and not torch.equal(one["pooled"], plain["pooled"])
    batch, _ = batch_of(family, None)
    batch = replace(batch, captions=["a sks cat"] * 2)
    family.loss(batch, family.objective)[0].backward()
    grad = words["sks"].grad
    assert grad is not None and grad[:, :16].abs().sum() > 0 and grad[:, 16:].abs().sum() > 0
    family.set_words({})
    assert all(torch.equal(value, plain[name]) for name, value in family.encode_text(["a sks cat"]).items())


def test_a_run_with_a_new_word_brings_it_in_files_that_webuis_read(base: Path, data: Path, tmp_path: Path) -> None:
    """`clip_l` and `clip_g`, beside the LoRA and bundled in it; and it is read back."""
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, new_token="gradient-1", token_vectors=2)
    captions = (data / "metadata.csv").read_text("utf-8").replace("a gradient", "gradient-1")
    pictures = shutil.copytree(data, tmp_path / "data")
    (pictures / "metadata.csv").write_text(captions, "utf-8")
    words = [f"train_data_dir={pictures}", "token_bundle=true", "epochs=1", "sample_first=false"]
    assert main(["train", "--config", str(config), *words]) == 0
    lora = tmp_path / "out" / "out.safetensors"
    file = load_file(tmp_path / "out" / "embeddings" / "out" / "gradient-1.safetensors")
    assert {name: tuple(t.shape) for name, t in file.items()} == {"clip_l": (2, 16), "clip_g": (2, 24)}
    bundle = {key: t for key, t in load_file(lora).items() if key.startswith("bundle_emb.")}
    assert all(torch.equal(bundle[f"bundle_emb.gradient-1.{name}"], file[name]) for name in ("clip_l", "clip_g"))
    assert torch.equal(read_words(lora)["gradient-1"], torch.cat([file["clip_l"], file["clip_g"]], 1))
    ask = ["generate", "--base", str(base), "--lora-dir", str(tmp_path / "out"), "--size", "64", "--steps", "2"]
    drawn = [tmp_path / "with.png", tmp_path / "without.png"]
    for path, tag in zip(drawn, (" <lora:out:1>", ""), strict=True):
        assert main([*ask, "--prompt", f"a gradient-1{tag}", "--output", str(path), "--precision", "fp32"]) == 0
    assert drawn[0].read_bytes() != drawn[1].read_bytes()


def test_less_memory_is_the_same_loss(base: Path, family: Any) -> None:
    """Blocks computed again give the same gradients; eight bits and tiles are near; rest and its end change nothing."""

    def gradients(loaded: Any) -> tuple[Tensor, dict[str, Tensor]]:
        layers = loaded.trainable()
        picked = {p: layers[p] for p in list(layers)[::37] if "encoder.layers.2" not in p}
        for layer in picked.values():
            layer.weight.requires_grad_(True)
        loss, _ = loaded.loss(batch_of(loaded, None)[0], loaded.objective)
        loss.backward()
        found = {path: layer.weight.grad.clone() for path, layer in picked.items()}
        for layer in picked.values():
            layer.weight.grad = None
            layer.weight.requires_grad_(False)
        return loss.detach(), found

    deep = model.load(base, replace(FP32, memory=MemoryOptions(checkpointing=True))).unet.mid_block.attentions[0]
    assert "forward" not in vars(deep) and all("forward" in vars(inner) for inner in deep.transformer_blocks)
    usual, again = (
        gradients(family),
        gradients(model.load(base, replace(FP32, memory=MemoryOptions(checkpointing=True)))),
    )
    assert torch.equal(usual[0], again[0])
    for path, grad in usual[1].items():
        torch.testing.assert_close(again[1][path], grad, rtol=1e-4, atol=1e-7)
    rounded = model.load(base, replace(FP32, memory=MemoryOptions(storage="int8")))
    with torch.no_grad():
        loss, _ = rounded.loss(batch_of(rounded, None)[0], rounded.objective)
    assert 0 < abs(loss / usual[0] - 1) < 0.05
    tiled = model.load(base, replace(FP32, memory=MemoryOptions(vae_tiling=True)))
    assert tiled.fingerprint("vae") != family.fingerprint("vae") and tiled.vae.use_tiling
    family.rest(text_encoder=True)
    family.encode_text(["a"])


def test_the_vae_and_the_text_encoders_stay_in_float32(base: Path) -> None:
    loaded = model.load(base, LoadOptions(CPU, torch.bfloat16))
    kinds = {part: {p.dtype for p in root.parameters()} for part, root in loaded.roots.items()}
    assert kinds == {"unet": {torch.bfloat16}, "text_encoder": {torch.float32}, "text_encoder_2": {torch.float32}}
    assert {p.dtype for p in loaded.vae.parameters()} == {torch.float32}
    with torch.no_grad():
        loss, _ = loaded.loss(batch_of(loaded, None)[0], loaded.objective)
    assert loss.isfinite()
    assert loaded.native_size == (64, 64)


def test_latents_are_scaled_as_the_vae_says(family: Any, models: tiny_xl.Models) -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        posterior = models.vae.encode(pixels).latent_dist
    latents = family.encode_image(pixels)
    torch.testing.assert_close(latents["mean"], posterior.mean * 0.13025)
    torch.testing.assert_close(latents["std"], posterior.std * 0.13025)


# --- as people meet it ------------------------------------------------------------------------------------------------


def mistake(folder: Path, base: Path, data: Path, capsys: pytest.CaptureFixture[str], **keys: object) -> str:
    """The one line that a training with these keys is refused with."""
    config = tiny.write_config(folder, base_model=base, train_data_dir=data, **keys)
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_wrong_pairs_are_one_line_each(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_base(tmp_path / "sd15.safetensors")
    weights = {
        "unet.down_blocks.0.attentions.0.proj_in": LoraWeights(torch.ones(1, 32, 1, 1), torch.ones(32, 1, 1, 1), 1)
    }
    lora = tmp_path / "old.safetensors"
    io.save_safetensors(lora, kohya.to_kohya(weights, sd1().kohya))
    told = mistake(tmp_path, base, data, capsys, init_lora=lora)
    assert "this LoRA is for Stable Diffusion 1.x, the base model is SDXL; take a LoRA of the base's kind" in told
    told = mistake(tmp_path, base, data, capsys, vae=other)
    assert "this is a checkpoint of another model, not a VAE of SDXL; give a VAE of SDXL" in told
    vae = {k: v for k, v in load_file(other).items() if k.startswith("first_stage_model.")}
    io.save_safetensors(tmp_path / "vae.safetensors", vae)
    told = mistake(tmp_path, base, data, capsys, vae=tmp_path / "vae.safetensors")
    assert "this VAE makes other latents than the base's own: it is of another model; give a VAE of SDXL" in told
    tensors = load_file(base)
    large = tmp_path / "large.safetensors"
    save_file(tensors, large, {"modelspec.resolution": "1024x1024"})
    told = mistake(tmp_path, large, data, capsys, resolution=512)
    assert "resolution 512 x 512 is too small: this base was made for 1024 x 1024; write resolution: 1024" in told
    assert least_pixels(large) < 768**2 and least_pixels(other) == 0


def test_a_lora_of_either_encoder_or_both(base: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"train_data_dir": "d", "base_model": str(base), "output_dir": str(tmp_path / "o")}
    for rates, parts in (
        (None, {"unet": 2e-4, "text_encoder": 5e-5, "text_encoder_2": 5e-5}),
        ((1e-5, 2e-5), {"unet": 2e-4, "text_encoder": 1e-5, "text_encoder_2": 2e-5}),
        ((1e-5, 0.0), {"unet": 2e-4, "text_encoder": 1e-5}),
    ):
        config = TrainConfig(**keys, precision="fp32", train_text_encoder=True, text_encoder_lr=rates)
        built = build_model(config, CPU, "fp32", {})
        assert {group["name"]: group["lr"] for group in built.optimizer.param_groups} == pytest.approx(parts)
        assert {path.partition(".")[0] for path in built.layers} == parts.keys()


def random_lora(family: Any, rank: int = 4, alpha: float = 2.0) -> dict[str, LoraWeights]:
    """Of every layer that can have one: the true ΔW is (alpha / rank) · up @ down."""
    g, weights = torch.Generator().manual_seed(5), {}
    for path, layer in family.trainable().items():
        shape = layer.weight.shape
        up = 0.1 * torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=g)
        weights[path] = LoraWeights(0.1 * torch.randn(rank, *shape[1:], generator=g), up, alpha)
    return weights


def deltas(before: nn.Module, after: nn.Module, part: str) -> dict[str, Tensor]:
    """Our path -> what has become of a weight, of all that changed."""
    old, new = before.state_dict(), after.state_dict()
    return {
        f"{part}.{key.removeprefix('text_model.').removesuffix('.weight')}": new[key] - old[key]
        for key in old
        if not torch.equal(old[key], new[key])
    }


def test_diffusers_and_peft_apply_what_the_file_means(family: Any, tmp_path: Path) -> None:
    """In kohya's names with published block names, alpha unlike the rank; and as PEFT's folders, by the libraries."""
    weights = random_lora(family)
    lora = tmp_path / "lora.safetensors"
    io.save_safetensors(lora, kohya.to_kohya(weights, sdxl().kohya, dtype=torch.float32))
    stems = {key.partition(".")[0] for key in load_file(lora)}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in stems
    for n in range(3):  # A1111 passes over an attention of the second encoder of which one of the four is missing
        for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert f"lora_te2_text_model_encoder_layers_{n}_self_attn_{leaf}" in stems
    wanted = {
        p: (w.alpha / w.rank * (w.up.flatten(1).double() @ w.down.flatten(1).double())) for p, w in weights.items()
    }

    fresh = tiny_xl.models()
    tokenizer = clip_tokenizer()
    unet, vae, text, text_2 = tiny_xl.models()
    pipe = StableDiffusionXLPipeline(
        vae, text, text_2, tokenizer, tokenizer, unet, DDPMScheduler(), add_watermarker=False
    )
    pipe.load_lora_weights(str(lora))
    pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    pipe.unload_lora_weights()
    found: dict[str, Tensor] = {}
    for part, before in zip(
        ("unet", "text_encoder", "text_encoder_2"), (fresh.unet, fresh.text, fresh.text_2), strict=True
    ):
        found |= deltas(before, getattr(pipe, part), part)
    assert found.keys() == wanted.keys()
    assert max((found[p].flatten(1).double() - wanted[p]).abs().max().item() for p in wanted) < 1e-6

    assert main(["convert", str(lora), "--to", "peft", "--output", str(tmp_path / "peft")]) == 0
    found = {}
    for part, model_ in zip(("unet", "text_encoder", "text_encoder_2"), (unet, text, text_2), strict=True):
        base_of = copy.deepcopy(model_)
        merged = PeftModel.from_pretrained(model_, tmp_path / "peft" / part).merge_and_unload()
        found |= deltas(base_of, merged, part)
    assert max((found[p].flatten(1).double() - wanted[p]).abs().max().item() for p in wanted) < 1e-6


def test_a1111_passes_over_half_an_attention_of_the_second_encoder(base: Path, family: Any) -> None:
    facts = by_name("sdxl")
    weights = random_lora(family)
    layers = facts.base(base)
    assert not a1111.read(kohya.to_kohya(weights, sdxl().kohya, dtype=torch.float32), layers).faults
    attention = "text_encoder_2.encoder.layers.0.self_attn."
    half = {p: w for p, w in weights.items() if p != attention + "v_proj"}
    reading = a1111.read(kohya.to_kohya(half, sdxl().kohya), layers)
    assert {p for p in half if p not in reading.changes} == {
        attention + leaf for leaf in ("q_proj", "k_proj", "out_proj")
    }
    assert "q, k, v and out of this attention are not all there" in reading.faults[0].why


def test_a_base_says_what_it_answers_with(data: Path, tmp_path: Path) -> None:
    """A run, and pictures drawn without a word, go by the header keys; a key of the config counts more."""
    nothing = torch.zeros(0)
    v = tiny_xl.write_base(tmp_path / "v.safetensors", v_pred=nothing, ztsnr=nothing)
    assert settings(v, {"prediction": None}) == {"prediction": "v", "zero_terminal_snr": True}
    assert settings(v, {"prediction": "epsilon", "zero_terminal_snr": False})["prediction"] == "epsilon"
    config = tiny.write_config(tmp_path, base_model=v, train_data_dir=data, epochs=1, targets="['*mid*attn2*']")
    assert main(["train", "--config", str(config)]) == 0
    lora = tmp_path / "out" / "out.safetensors"
    assert read_header(lora).metadata["modelspec.prediction_type"] == "v"
    ask = ["generate", "--base", str(v), "--prompt", "a", "--size", "64", "--steps", "2", "--precision", "fp32"]
    for name, more in (
        ("told", []),
        ("v", ["--prediction", "v", "--zero-terminal-snr"]),
        ("e", ["--prediction", "epsilon"]),
    ):
        assert main([*ask, *more, "--output", str(tmp_path / f"{name}.png")]) == 0
    told, as_v, epsilon = (Image.open(tmp_path / f"{name}.png").tobytes() for name in ("told", "v", "e"))
    assert told == as_v != epsilon
