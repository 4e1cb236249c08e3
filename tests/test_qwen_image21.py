"""Qwen-Image-2.1, on a narrow random model: numbers against diffusers' modules, pipeline, scheduler and converter."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_qwen_image21_transformer_checkpoint_to_diffusers
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import calculate_shift
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

import flow_checks
import tiny
import tiny_flow
import tiny_krea2
import tiny_qwen
import tiny_qwen21
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.compute.memory import TILE, MemoryOptions
from lora_scripts.data.buckets import View
from lora_scripts.data.cache import Cache
from lora_scripts.data.image import apply_view, load_rgb, load_rgba
from lora_scripts.data.masks import alpha_mask
from lora_scripts.data.scan import scan
from lora_scripts.families.qwen_image21 import layout, rgba
from lora_scripts.families.qwen_image21.check import FILES
from lora_scripts.families.qwen_image21.frame import Frame
from lora_scripts.families.qwen_image21.rgba import RGBA_VAE
from lora_scripts.families.sd.latents import LatentCoder
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.formats import io
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.losses.noise import Draws
from lora_scripts.train.encoded import Encoded, Masks
from lora_scripts.train.planned import plan_pictures
from runs import faults, stopped

FACTS = by_name("qwen_image21")
LONG = f"{PROMPTS[0]} {PROMPTS[0]} how are you hello hello"
_CHAT = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content[0].text + '<|im_end|>\\n' }}{%- endfor %}"
)
"""What of Qwen3-VL's own concerns one message."""

base, family = flow_checks.fixtures(FACTS, tiny_qwen21)


class Processor(Qwen3VLProcessor):
    """Without what reads pictures and films, which needs torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.chat_template = tokenizer, _CHAT
        self.image_token, self.image_token_id = (
            tiny_qwen21.PICTURE,
            tokenizer.convert_tokens_to_ids(tiny_qwen21.PICTURE),
        )


@pytest.fixture(scope="module")
def theirs() -> QwenImage21Pipeline:
    made = tiny_qwen21.models()
    chat = Qwen3VLForConditionalGeneration(made.text.config).eval()
    chat.model.load_state_dict(made.text.state_dict())
    parts = {"transformer": made.transformer, "vae": made.vae, "text_encoder": chat}
    pipe = QwenImage21Pipeline(scheduler=tiny_qwen21.scheduler(), processor=Processor(made.tokenizer), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    channels, height, width = x.shape[1:]
    states, mask, slots = theirs.encode_prompt([caption])
    tokens = theirs.transformer(
        hidden_states=theirs._pack_latents(x, 1, channels, height, width),
        timestep=sigma,
        encoder_hidden_states=states,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, height, width)]],
        img_mask=torch.cat([slots, slots.new_ones(1, height * width // 4)], 1),
        return_dict=False,
    )[0]
    return theirs._unpack_latents(tokens[:, -height * width :], height * 16, width * 16, 16).squeeze(2)


def latents(theirs: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of opaque pictures."""
    return flow_checks.film_latents(theirs, torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1))


def levels(theirs: Any, steps: int, tokens: int) -> None:
    """And one more, as good as 0: by the last their scheduler stretches the others."""
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    theirs.scheduler.set_timesteps(sigmas=[*np.linspace(1.0, 1 / steps, steps), 1e-9], mu=mu)


CASE = Case(FACTS, tiny_qwen21, FILES, layout, answer, latents, levels)


def test_the_rows_of_the_published_widths_are_the_models_parameters() -> None:
    """As diffusers builds it without any argument, in both layouts of its files."""
    with torch.device("meta"):
        model = QwenImage21Transformer2DModel()
    for fused in (True, False):
        rows = layout.rows(layout.QwenImage21Layout(fused=fused))
        assert {row.hf: row.shape for row in rows} == {k: tuple(p.shape) for k, p in model.state_dict().items()}
        assert len({row.ldm for row in rows}) == 297 - 32 * fused
    assert sum(math.prod(row.shape) for row in rows) == 7_115_124_736
    assert all(model.config[key] == value for key, value in layout.config_of(layout.STANDARD).items())
    assert layout.layout_from(model.config) == layout.QwenImage21Layout(fused=False)
    assert len(FACTS.names().written) == 32 * 7 + 8


def test_the_published_vae_is_theirs() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage21()
    table = {row.hf: row.shape for row in rgba.rows(rgba.STANDARD)}
    assert table == {k: tuple(p.shape) for k, p in vae.state_dict().items()}
    assert {row.ldm for row in rgba.rows(rgba.STANDARD)} == {tiny_qwen21.wan_name(key) for key in table}


def test_the_template_names_what_stands_beside_the_base() -> None:
    config = flow_checks.template("qwen_image_21")
    assert config.text_encoder == (config.base_model,) and config.base_precision == "fp8"
    assert config.size == (1024, 1024) and config.sample_cfg == 1.0


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Any) -> None:
    """Behind the last layer and before its norm, without the system's word, by a model without its vision tower; for
    no caption stands a space."""
    for caption in (*PROMPTS, LONG, ""):
        ours, (want, _, _) = family.encode_text([caption]), theirs.encode_prompt([caption])
        assert ours["states"].shape == want.shape and ours["lengths"].tolist() == [want.shape[1]]
        assert (ours["states"] - want).abs().max() < 1e-4 * want.abs().max()
    assert not hasattr(family.encoder._model, "visual") and theirs._drop_idx > 3
    assert family.encoder.excess(LONG) == 0 < family.encoder.excess(f"{PROMPTS[0]} " * 1200)


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 1024, 4096, 16384])
@pytest.mark.parametrize("steps", [4, 40])
def test_the_levels_are_those_of_the_published_sampler(family: Any, tokens: int, steps: int) -> None:
    """By value; 16384 tokens are 2048 x 2048 pixels, beyond the end of the line."""
    scheduler = FlowMatchEulerDiscreteScheduler(**tiny_qwen.SCHEDULER)
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = torch.tensor(family.objective.sigmas.steps(steps, tokens))
    assert (ours - scheduler.sigmas[:-1]).abs().max() < 1e-6
    ends = family.objective.sigmas.at(torch.tensor([1.0, 0.0], dtype=torch.float64), tokens)
    assert (ends - scheduler.sigmas[[0, steps - 1]]).abs().max() < 1e-6 and ends.tolist() == [1.0, pytest.approx(0.02)]


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Any) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, steps=20)


@torch.no_grad()
def test_a_neighbour_with_a_longer_caption_changes_nothing(family: Any) -> None:
    """Filled up, the picture would stand elsewhere."""
    generator = torch.Generator().manual_seed(1)
    pixels, noise = torch.rand(3, 3, 64, 64, generator=generator), torch.randn(3, 64, 4, 4, generator=generator)
    draws = Draws(torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64), noise, torch.zeros(3, 64, 4, 4))
    captions = ["hello", LONG, "hello"]
    together = family.losses(flow_checks.batch_of(family, pixels, captions), family.objective, draws)
    for n, caption in enumerate(captions):
        one = flow_checks.batch_of(family, pixels[n : n + 1], [caption])
        own = Draws(draws.u[n : n + 1], noise[n : n + 1], draws.posterior[n : n + 1])
        alone = family.losses(one, family.objective, own)
        assert abs(together[n].item() - alone.item()) < 1e-5 * alone.item()


# --- the VAE ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_picture_goes_through_the_vae_as_through_theirs(theirs: Any) -> None:
    """With its transparency, or opaque; in tiles as theirs, of our size."""
    pixels = torch.rand(1, 4, 96, 64, generator=torch.Generator().manual_seed(6)) * 2 - 1
    vae, frame = theirs.vae, Frame(tiny_qwen21.autoencoder())
    for own, told in ((pixels, pixels), (pixels[:, :3], torch.cat([pixels[:, :3], torch.ones(1, 1, 96, 64)], 1))):
        posterior, want = frame.encode(own).latent_dist, vae.encode(told.unsqueeze(2)).latent_dist
        assert (posterior.mean - want.mean.squeeze(2)).abs().max() < 1e-4
        assert (posterior.std - want.std.squeeze(2)).abs().max() < 1e-4
    z = torch.randn(1, 64, 6, 4, generator=torch.Generator().manual_seed(7))
    assert (frame.decode(z)[0].clamp(-1, 1) - vae.decode(z.unsqueeze(2)).sample.squeeze(2)).abs().max() < 1e-4
    seen, maps = LatentCoder(frame, RGBA_VAE.normal(vae), OPTIONS.device, MemoryOptions()).features(pixels[:, :3])
    sizes = [tuple(level.shape[1:]) for level in maps]
    assert seen.shape == (1, 64, 6, 4)
    assert sizes == [(4, 48, 32), (8, 24, 16), (16, 12, 8), (32, 6, 4), (32, 6, 4)]
    tiled = LatentCoder(
        Frame(tiny_qwen21.autoencoder()), RGBA_VAE.normal(vae), OPTIONS.device, MemoryOptions(vae_tiling=True)
    )
    wide = pixels.repeat(1, 1, 1, TILE // 64 + 1)
    vae.enable_tiling(TILE, TILE, TILE * 3 // 4, TILE * 3 // 4)
    mean, _ = flow_checks.film_latents(theirs, wide)
    vae.disable_tiling()
    assert (tiled.encode(wide)["mean"] - mean).abs().max() < 1e-4
    whole = LatentCoder(tiled.vae, RGBA_VAE.normal(vae), OPTIONS.device, MemoryOptions(vae_tiling=True)).features(wide)
    alone = LatentCoder(
        Frame(tiny_qwen21.autoencoder()), RGBA_VAE.normal(vae), OPTIONS.device, MemoryOptions()
    ).features(wide)
    assert all(map(torch.equal, [whole[0], *whole[1]], [alone[0], *alone[1]])) and tiled.vae.film.use_tiling


@pytest.mark.parametrize("names", ["Wan's", "diffusers'"])
def test_the_vae_is_read_in_both_spellings(base: Path, tmp_path: Path, names: str) -> None:
    made, path = tiny_qwen21.models().vae.state_dict(), base.parent / tiny_qwen21.VAE
    if names == "diffusers'":
        path = tmp_path / "vae.safetensors"
        save_file({key: value.contiguous() for key, value in made.items()}, path)
    read_back = RGBA_VAE.load(path, "Qwen-Image-2.1").film
    flow_checks.same(read_back.state_dict(), made)
    assert read_back.config.latents_mean == tiny_qwen21.models().vae.config.latents_mean


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Any, cfg: float) -> None:
    """With its transparency, and a negative prompt that is longer than the prompt."""

    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        more = {"true_cfg_scale": cfg, "negative_prompt": LONG} if cfg > 1 else {}
        picture = theirs(PROMPTS[0], latents=theirs._pack_latents(noise, 1, 64, *noise.shape[2:]), **more, **size)
        assert picture.images[0].mode == "RGBA"
        return picture.images[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative=LONG)


# --- transparency -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clear(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of `data`, four and one twice, from left to right more opaque, nowhere wholly transparent."""
    folder = tmp_path_factory.mktemp("clear")
    ramp = Image.fromarray(np.tile(np.linspace(1, 255, 64, dtype=np.uint8), (64, 1)))
    for path in data.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.putalpha(ramp)
                image.save(folder / path.name)
        else:
            shutil.copy(path, folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_a_picture_is_trained_with_its_transparency(
    family: Any, theirs: Any, clear: Path, tmp_path: Path, masked: bool
) -> None:
    """Its latents are those that their pipeline makes of it; but where transparency is the mask, those of the picture
    on white. The cache tells them apart."""
    (sample, *_), cache = scan(clear), Cache(tmp_path, io.write_atomic)
    (picture,) = plan_pictures([sample], (64, 64), FACTS.bucket_steps, flip=False, random_crop=False, seed=0)
    masks = Masks(lambda one: alpha_mask(one.path)) if masked else None
    entries = {}
    for transparency in (not masked, masked):
        encoded = Encoded(family, [picture], masks, texts=False, transparency=transparency)
        encoded.fill(cache, lambda *_: None)
        entries[transparency] = encoded.latents(0)["mean"]
    with Image.open(sample.path) as image:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        shown = {True: image.copy(), False: white}
    for transparency, picture_shown in shown.items():
        pixels = theirs.image_processor.preprocess(picture_shown)
        assert pixels.shape == (1, 4, 64, 64)
        want, _ = flow_checks.film_latents(theirs, pixels)
        assert (entries[transparency] - want[0]).abs().max() < 1e-4
    assert (entries[True] - entries[False]).abs().max() > 0.1


@pytest.mark.parametrize("masked", ["false", "true"])
def test_a_run_on_transparent_pictures_trains_them_so_and_draws_them(
    base: Path, clear: Path, tmp_path: Path, masked: str
) -> None:
    """Previews are PNGs with transparency; with `mask_alpha` latents are those of opaque pictures."""
    keys = {"sample_every": 1, "sample_prompts": "[hello]", "mask_alpha": masked, "val_split": 0.2}
    parts: Any = tiny_qwen21.beside(base.parent)
    stopped(tiny.write_config(tmp_path, base_model=base, train_data_dir=clear, **parts, **keys), 2)
    drawn = sorted((tmp_path / "out" / "samples").glob("*.png"))
    with Image.open(drawn[-1]) as image:
        assert image.mode == "RGBA" and image.size == (64, 64) and np.asarray(image)[..., 3].std() > 0
    family: Any = load_family(FACTS, base, replace(OPTIONS, **parts))
    view, kinds = View((64, 64), (64, 64), 0, 0, False), {"false": load_rgba, "true": load_rgb}
    cached = [load_file(path) for path in (tmp_path / "out" / "cache").rglob("*.safetensors")]
    means = torch.stack([entry["mean"] for entry in cached if "mean" in entry])
    assert len(means) == 4
    for sample in scan(clear):  # the one that is held out, too
        for kind, load in kinds.items():
            mean = family.encode_image(apply_view(load(sample.path), view)[None])["mean"]
            assert ((means - mean).abs().amax((1, 2, 3)).min() < 1e-5) == (kind == masked)


def test_a_picture_to_begin_with_keeps_its_transparency(base: Path, clear: Path, tmp_path: Path) -> None:
    """And is taken to the nearest size that can be drawn."""
    with Image.open(clear / "0.png") as image:
        image.resize((70, 60)).save(tmp_path / "clear.png")
    load_rgb(tmp_path / "clear.png").save(tmp_path / "white.png")
    parts: Any = tiny_qwen21.beside(base.parent)
    flags = ["--text-encoder", *parts["text_encoder"], "--vae", parts["vae"], "--precision", "fp32"]
    drawn = []
    for name in ("clear", "white"):
        ask = ["generate", "--base", base, "--prompt", "hello", "--image", tmp_path / f"{name}.png", "--steps", "2"]
        target = tmp_path / f"{name}-drawn.png"
        assert main([str(word) for word in (*ask, *flags, "--denoise", "0.5", "--output", target)]) == 0
        drawn.append(np.asarray(Image.open(target), int))
    assert {one.shape for one in drawn} == {(64, 64, 4)} and np.abs(drawn[0] - drawn[1]).max() > 2


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str) -> None:
    path = tiny_qwen21.write_base(tmp_path / "base.safetensors", prefix=prefix)
    own = tiny_qwen21.models().transformer
    flow_checks.one_file(CASE, path, prefix, own, convert_qwen_image21_transformer_checkpoint_to_diffusers)


def test_a_single_file_with_diffusers_names_is_read(tmp_path: Path) -> None:
    """As those have it that come straight from the folder."""
    own = tiny_qwen21.models().transformer
    path = tiny_flow.write_transformer(tmp_path / "base.safetensors", own.state_dict())
    flow_checks.one_file(CASE, path, "", own)


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_qwen21.beside) == []


def test_a_file_in_fp8_with_scales_is_read(base: Path, tmp_path: Path) -> None:
    """Both halves of a matrix have its one scale."""
    tensors = load_file(base)
    (key,) = (key for key in tensors if ".1.img_mlp.gate_up." in key)
    scale = tensors[key].abs().max() / 448
    tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
    path = tmp_path / "fp8.safetensors"
    save_file({**tensors, key.replace(".weight", ".weight_scale"): scale}, path)
    FACTS.check(path, False)
    state = FILES.load(path, torch.float32).state_dict()
    halves = [state[f"transformer_blocks.1.img_mlp.{half}.weight"] for half in ("gate_layer", "proj")]
    assert torch.equal(torch.cat(halves), tensors[key].float() * scale)


def test_the_groups_hold_the_layers_that_they_name() -> None:
    leaves = {"attention": [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]}
    leaves["feed_forward"] = [f"img_mlp.{name}" for name in ("gate_layer", "proj", "out")]

    def inside(group: str) -> set[str]:
        return {path.removeprefix("transformer.") for path in lora_of() if FACTS.groups[group](path)}

    for group, names in leaves.items():
        assert inside(group) == {f"transformer_blocks.{n}.{name}" for n in (0, 1) for name in names}
    assert inside("modulation") == {"modulation.1"} and inside("text") == {"txt_in.in_layer", "txt_in.out_layer"}


def test_relatives_and_parts_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    check_text = FACTS.check_text
    assert check_text is not None
    turbo = tiny_qwen21.write_folder(tmp_path / "turbo", sample_sigmas=[1.0, 0.75, 0.5, 0.25])
    assert "this is a Qwen-Image-2.1 distilled to few steps (Turbo)" in faults(lambda: find(turbo))
    older = tiny_qwen.write_base(tmp_path / "older" / "qwen.safetensors")
    assert find(older) is by_name("qwen_image") and identify(base) is FACTS.checkpoint
    assert f"(such as {tiny_qwen21.TEXT})" in faults(lambda: check_text(base, ()))
    assert f"add vae: the file {tiny_qwen21.VAE}" in faults(lambda: FACTS.check(base, True))
    four = tiny_krea2.models()._replace(text=tiny_krea2.language(width=48)[0])
    path = tiny_krea2.write_text(tmp_path / "four" / "qwen.safetensors", four)
    assert "gives states of width 48, the base reads 32" in faults(lambda: check_text(base, [path]))
    qwen25: Any = tiny_qwen.beside(older.parent)["text_encoder"]
    assert "this is no Qwen3-VL text encoder, but Qwen2.5-VL" in faults(lambda: check_text(base, qwen25))
    # VAEs
    of_older: Any = tiny_qwen.beside(older.parent)["vae"]
    assert "latents of 16 channels, Qwen-Image-2.1 has 64" in faults(lambda: FACTS.check_vae(of_older))
    for told, vae in (("16 channels", tiny_qwen.autoencoder()), ("without transparency", tiny_flow.autoencoder())):
        vae.save_pretrained(tmp_path / told)
        assert told in faults(lambda told=told: FACTS.check_vae(tmp_path / told))  # type: ignore[misc]
    tiny_flow.write_vae(tmp_path / "ae.safetensors", tiny_flow.autoencoder())
    assert "latents of 16 channels" in faults(lambda: FACTS.check_vae(tmp_path / "ae.safetensors"))
    assert "an unknown model, not the VAE of Qwen-Image-2.1" in faults(lambda: FACTS.check_vae(base))
    ours = base.parent / tiny_qwen21.VAE
    assert "latents of 64 channels, Qwen-Image has 16" in faults(lambda: by_name("qwen_image").check_vae(ours))
    for where, part in ((base, FACTS.check), (ours, FACTS.check_vae)):
        tensors = load_file(where)
        tensors.pop(next(key for key in tensors if key.endswith(("0.attn.to_k.weight", "middle.1.proj.bias"))))
        save_file(tensors, tmp_path / "cut.safetensors")
        check: Any = partial(part, tmp_path / "cut.safetensors", *[False] * (part is FACTS.check))
        assert "are missing: " in faults(check)


# --- LoRA files -------------------------------------------------------------------------------------------------------


def lora_of(alpha: float = 0.5) -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_qwen21.models().transformer, alpha=alpha)


@pytest.mark.parametrize("start", ["transformer.", "diffusion_model."])
def test_diffusers_draws_with_the_file_what_we_draw(family: Any, theirs: Any, tmp_path: Path, start: str) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = flow_checks.save_own(FACTS, lora_of(), path)
    assert not any(key.endswith(".alpha") for key in tensors)
    save(path, {key.replace("transformer.", start, 1): value for key, value in tensors.items()}, {})
    flow_checks.drawn_with(CASE, family, theirs, lora_of(), path)


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    """Under names written by hand from what it asks a LoRA of this model for: gate and up apart behind `transformer.`
    and the like, together behind `lora_unet_` and `diffusion_model.`."""
    layers = {
        k.removesuffix(".weight") for k, v in tiny_qwen21.models().transformer.state_dict().items() if v.dim() == 2
    }
    own = {k.removeprefix("model.diffusion_model.") for k, v in load_file(base).items() if v.dim() == 2}
    own = {key.removesuffix(".weight") for key in own}
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert stems == {f"transformer.{name}" for name in layers} and len(stems) == 2 * 7 + 8
    bare = {key.replace("transformer.", "", 1): value for key, value in form.tensors.items()}
    lycoris = {}
    for key, value in bare.items():
        stem, _, leaf = key.partition(".lora_")
        lycoris[f"lycoris_{stem.replace('.', '_')}.lora_{leaf}"] = value
    for tensors in (form.tensors, bare, lycoris):
        reading = comfyui.read(tensors, FACTS.base(base))
        assert not reading.faults and reading.changes.keys() == lora_of().keys()
    names, layers_of = FACTS.names(), lora_of()
    for table, start in ((names.kohya, "lora_unet_"), (names.original, "diffusion_model.")):
        written = kohya.to_kohya(layers_of, table, dtype=torch.float32, fused=names.fused)
        flat = {name if "." in start else name.replace(".", "_") for name in own}
        assert {key.rsplit(".lora_", 1)[0].removesuffix(".alpha") for key in written} == {start + name for name in flat}
    toolkit = {f"diffusion_model.{key}": value for key, value in bare.items()}
    left = {fault.key.partition(".lora_")[0] for fault in comfyui.read(toolkit, FACTS.base(base)).faults}
    assert left == {f"diffusion_model.{name}" for name in layers - own}


@pytest.mark.parametrize("dress", ["ComfyUI", "kohya", "diffusers", "bare", "PEFT"])
def test_a_lora_of_another_trainer_is_read(tmp_path: Path, dress: str) -> None:
    """With gate and up as one matrix, too: one A, and a B of the two below each other."""
    names, tensors, path = FACTS.names(), dict[str, torch.Tensor](), tmp_path / "theirs.safetensors"
    want = lora_of(alpha=2.0)
    for name in [name for name in want if name.endswith(".proj")]:
        want[name] = LoraWeights(want[name.replace(".proj", ".gate_layer")].down, want[name].up, 2.0)
    for name, w in want.items():
        table = {"ComfyUI": names.original, "kohya": names.kohya}.get(dress, names.diffusers)
        stem = table[name].removeprefix("transformer." if dress in ("bare", "PEFT") else "no")
        stem = stem if dress != "PEFT" else f"base_model.model.{stem}"
        up = w.up
        if table[name].endswith("gate_up"):
            up = torch.cat([tensors.get(f"{stem}.lora_B.weight", up[:0]), up])
            order = name.endswith("gate_layer")
            assert order == (len(up) == len(w.up))  # the gate comes first
        tensors |= {f"{stem}.lora_A.weight": w.down, f"{stem}.lora_B.weight": up}
    save(path, tensors, {})
    file = read(path)
    assert file.family is FACTS and file.weights.keys() == want.keys()
    for name, w in want.items():
        assert torch.allclose(factors.of(file.weights[name]).dense(), factors.of(w).dense()), name


def test_a_lora_of_another_model_with_the_same_names_is_not_taken_for_it(tmp_path: Path) -> None:
    """The attention of several diffusion transformers bears the same names."""

    def told(*stems: str, **metadata: str) -> Any:
        tensors = {f"{stem}.lora_A.weight": torch.ones(2, 4096) for stem in stems}
        tensors |= {f"{stem}.lora_B.weight": torch.ones(4096, 2) for stem in stems}
        save(tmp_path / "lora.safetensors", tensors, metadata)
        return family_of(tmp_path / "lora.safetensors")

    block = "transformer.transformer_blocks.25.attn"
    assert "this is a LoRA for a diffusion transformer" in faults(lambda: told(f"{block}.to_q", f"{block}.to_k"))
    assert told(f"{block}.to_q", ss_base_model_version="qwen_image_21") is FACTS
    assert told(f"{block}.to_q", "transformer.modulation.1") is FACTS
    own = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    save(tmp_path / "own.safetensors", own.tensors, own.metadata)
    assert "this LoRA is for Qwen-Image-2.1, the base model is Qwen-Image" in faults(
        lambda: read(tmp_path / "own.safetensors", by_name("qwen_image"))
    )
    older = flow_checks.lora_of(by_name("qwen_image"), tiny_qwen.models().transformer)
    flow_checks.save_own(by_name("qwen_image"), older, tmp_path / "older.safetensors")
    assert family_of(tmp_path / "older.safetensors") is by_name("qwen_image")


@pytest.mark.slow  # as the other families
def test_a_folder_with_a_stored_base_and_recomputed_blocks_trains(data: Path, tmp_path: Path) -> None:
    """Two pictures with captions of two lengths at a time."""
    path = flow_checks.trained(tiny_qwen21.write_folder(tmp_path / "base"), data, tmp_path, batch_size=2)
    assert read(path).weights.keys() == {path for path in lora_of() if ".transformer_blocks." in path}


def test_a_folder_is_the_file(base: Path, family: Any, tmp_path: Path) -> None:
    """Its tokenizer lies in `processor`, as published."""
    folder: Any = load_family(FACTS, tiny_qwen21.write_folder(tmp_path / "base"), OPTIONS)
    flow_checks.same(folder.transformer.state_dict(), family.transformer.state_dict())
    flow_checks.same(folder.encode_text(PROMPTS), family.encode_text(PROMPTS))
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    flow_checks.same(folder.encode_image(pixels), family.encode_image(pixels))
