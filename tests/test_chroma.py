"""Chroma, on a narrow random model: numbers against diffusers' own modules, pipeline, scheduler and converters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel
from diffusers.loaders import lora_conversion_utils, single_file_utils
from diffusers.pipelines.chroma.pipeline_chroma import calculate_shift
from safetensors.torch import load_file, save_file

import flow_checks
import tiny
import tiny_chroma
import tiny_flux1
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.chroma import layout
from lora_scripts.families.chroma.check import FILES
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.losses.flow import STEPS
from lora_scripts.losses.noise import Draws
from runs import faults

FACTS = by_name("chroma")
NEGATIVE = "hello hello blurry"

base, family = flow_checks.fixtures(FACTS, tiny_chroma)


class Masked(ChromaPipeline):
    """Theirs, but that its mask is one: as it is, its numbers 0 and 1 are added to the scores, so that what fills a
    text up is read after all (huggingface/diffusers#12116). Its transformer takes truth values as they are meant."""

    def _prepare_attention_mask(self, *args: Any, **kwargs: Any) -> Any:
        mask = super()._prepare_attention_mask(*args, **kwargs)
        return None if mask is None else mask.bool()


@pytest.fixture(scope="module")
def theirs() -> Masked:
    return flow_checks.pipeline_of(Masked, tiny_chroma.models(), tiny_chroma.scheduler())


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    """With all 512 tokens, those masked that nobody reads."""
    states, text_ids, there = theirs.encode_prompt([caption], do_classifier_free_guidance=False)[:3]
    channels, height, width = x.shape[1:]
    tokens = theirs.transformer(
        hidden_states=theirs._pack_latents(x, 1, channels, height, width),
        timestep=sigma,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=theirs._prepare_latent_image_ids(1, height // 2, width // 2, torch.device("cpu"), torch.float32),
        attention_mask=theirs._prepare_attention_mask(1, height * width // 4, torch.float32, there),
        return_dict=False,
    )[0]
    return theirs._unpack_latents(tokens, height * 8, width * 8, 8)


def levels(theirs: Any, steps: int, tokens: int) -> None:
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens))


CASE = Case(FACTS, tiny_chroma, FILES, layout, answer, levels=levels)


def narrow(function: Callable[..., Any], *numbers: tuple[str, str]) -> Any:
    """A converter of diffusers', which has the published widths written into it, with others in their place."""
    source = inspect.getsource(function)
    for published, ours in numbers:
        assert published in source
        source = source.replace(published, ours)
    space = dict(vars(inspect.getmodule(function)))  # type: ignore[arg-type]
    exec(source, space)
    return space[function.__name__]


@cache
def lora_of() -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_chroma.models().transformer)


def in_blocks() -> dict[str, LoraWeights]:
    """On what is trained: FLUX.1 has all of these layers, too."""
    return {path: w for path, w in lora_of().items() if "_blocks." in path}


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("caption", [*PROMPTS, "", "hello how are you, " * 200])
def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Masked, caption: str) -> None:
    """Their own tokens and one that fills up, of the 512 that the pipeline hands on with a mask."""
    ours = family.encode_text([caption, "hello"])
    states, _, mask = theirs.encode_prompt([caption, "hello"], do_classifier_free_guidance=False)[:3]
    own = [len(theirs.tokenizer(text, truncation=True, max_length=512).input_ids) for text in (caption, "hello")]
    assert ours["lengths"].tolist() == mask.sum(1).tolist() == [min(512, count + 1) for count in own]
    for row, length in enumerate(ours["lengths"].tolist()):
        assert (ours["states"][row, :length] - states[row, :length]).abs().max() < 1e-5
    assert (family.encoder.excess(caption) > 0) == (len(theirs.tokenizer(caption).input_ids) > 512)


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 1024, 4096])
def test_the_shift_is_theirs(family: Any, theirs: Masked, tokens: int) -> None:
    sigmas = family.objective.sigmas
    for steps in (4, STEPS):
        levels(theirs, steps, tokens)
        ours = torch.tensor(sigmas.steps(steps, tokens))
        assert (ours - theirs.scheduler.sigmas[:-1]).abs().max() < 1e-6 and ours[0] == 1.0
    # The noisiest level and the least of so many, by value.
    u = torch.tensor([1.0, 1 / STEPS], dtype=torch.float64)
    assert (sigmas.at(u, tokens) - theirs.scheduler.sigmas[[0, STEPS - 1]]).abs().max() < 1e-6


def test_a_folder_says_its_own_levels(tmp_path: Path) -> None:
    folder = tiny_chroma.write_folder(tmp_path / "folder")
    own: Any = load_family(FACTS, folder, OPTIONS)
    assert own.objective.sigmas.factor(4096) == pytest.approx(math.exp(1.15))
    tiny_chroma.scheduler(use_dynamic_shifting=False, shift=1.0).save_pretrained(folder / "scheduler")
    still: Any = load_family(FACTS, folder, OPTIONS)
    assert still.objective.sigmas.factor(4096) == 1.0


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Masked) -> None:
    """Of captions of six and of one word, so that one of them is filled up and masked."""
    flow_checks.loss_of_a_batch(CASE, family, theirs, STEPS)


def test_a_longer_caption_beside_it_changes_nothing(family: Any) -> None:
    flow_checks.neighbour(family)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_what_nobody_reads_spoils_no_gradient(base: Path, dtype: torch.dtype) -> None:
    """Whatever stands where a shorter caption is filled up; and every block is masked, recomputed ones too."""
    options = replace(OPTIONS, dtype=dtype, **tiny_chroma.beside(base.parent))
    plain: Any = load_family(FACTS, base, options)
    again: Any = load_family(FACTS, base, replace(options, memory=replace(options.memory, checkpointing=True)))
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = Draws(torch.tensor([0.4, 0.6], dtype=torch.float64), torch.ones(2, 16, 8, 8), torch.zeros(2, 16, 8, 8))
    found = []
    for model, filled in ((plain, 0.0), (plain, 5.0), (again, 0.0)):
        batch = flow_checks.batch_of(model, pixels, PROMPTS)
        states = batch.texts["states"]
        states[torch.arange(states.shape[1]) >= batch.texts["lengths"][:, None]] = filled
        weight = model.transformer.single_transformer_blocks[1].attn.to_k.weight.requires_grad_()
        weight.grad = None
        loss = model.losses(batch, model.objective, draws)
        loss.sum().backward()
        found.append((loss.detach(), weight.grad))
    for loss, grad in found:
        assert torch.isfinite(grad).all() and grad.abs().max() > 0
        torch.testing.assert_close((loss, grad), found[0])


def test_a_stored_base_and_recomputed_blocks_train(data: Path, tmp_path: Path) -> None:
    folder = tiny_chroma.write_folder(tmp_path / "base")
    written = read(flow_checks.trained(folder, data, tmp_path, batch_size=2, targets="[single]"))
    assert written.family is FACTS and all(".single_transformer_blocks." in path for path in written.weights)


def test_a_text_encoder_that_does_not_fit_comes_block_by_block(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_checks.block_by_block(family, monkeypatch)


# --- pictures ---------------------------------------------------------------------------------------------------------


def drawn(pipe: Any, noise: torch.Tensor, size: dict[str, int], **more: Any) -> Any:
    packed = pipe._pack_latents(noise, *noise.shape)
    return pipe(PROMPTS[0], latents=packed, **size, **more).images[0]


@pytest.mark.parametrize(("cfg", "negative"), [(1.0, ""), (4.0, NEGATIVE)])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Masked, cfg: float, negative: str) -> None:
    draw = partial(drawn, theirs, guidance_scale=cfg, negative_prompt=negative)
    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative=negative)


def test_the_pipeline_as_it_is_reads_what_fills_up(theirs: Masked) -> None:
    """Why `Masked` is there; once diffusers is mended, this says so."""
    pipe = ChromaPipeline(**theirs.components)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(7))
    size = {"height": 64, "width": 64, "num_inference_steps": 1}
    one, two = (np.asarray(drawn(own, noise, size, output_type="latent")) for own in (pipe, theirs))
    assert np.abs(one - two).max() > 1e-3


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_rows_of_the_published_widths_are_diffusers_parameters() -> None:
    usual = inspect.signature(ChromaTransformer2DModel.__init__).parameters
    assert all(usual[key].default == value for key, value in layout.config_of(layout.STANDARD).items())
    with torch.device("meta"):
        built = ChromaTransformer2DModel()
    shapes = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    assert {row.hf: row.model_shape for row in layout.rows(layout.STANDARD)} == shapes
    assert sum(map(math.prod, shapes.values())) == 17_799_966_848 // 2  # bytes in bf16, as the published index says


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_read_as_their_converter_reads_it(theirs: Masked, tmp_path: Path, prefix: str) -> None:
    path = tiny_chroma.write_base(tmp_path / "base.safetensors", prefix=prefix)
    convert = narrow(single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers, ("= 3072", "= 64"))
    flow_checks.one_file(CASE, path, prefix, theirs.transformer, convert)


def test_what_no_file_holds_is_computed(family: Any, theirs: Masked) -> None:
    """The numbers of the places that modulations are for."""
    ours, want = (model.time_text_embed.mod_proj for model in (family.transformer, theirs.transformer))
    assert torch.equal(ours, want) and ours.any()


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_chroma.beside) == []


def test_weights_in_fp8_with_a_scale_are_made_whole(base: Path, tmp_path: Path) -> None:
    tensors, key = load_file(base), "distilled_guidance_layer.layers.1.in_layer.weight"
    scale = tensors[key].abs().max() / 448
    tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
    wanted = tensors[key].float() * scale
    save_file({**tensors, f"{key.removesuffix('weight')}scale_weight": scale}, tmp_path / "fp8.safetensors")
    FACTS.check(tmp_path / "fp8.safetensors", False)
    beside: Any = tiny_chroma.beside(base.parent)
    family: Any = load_family(FACTS, tmp_path / "fp8.safetensors", replace(OPTIONS, **beside))
    assert torch.equal(family.transformer.distilled_guidance_layer.layers[1].linear_1.weight, wanted)


def test_what_is_not_whole_or_of_another_model_is_refused_by_name(base: Path, theirs: Masked, tmp_path: Path) -> None:
    tensors, path = load_file(base), tmp_path / "file.safetensors"
    others = {
        "a Chroma1-Radiance, which draws without a VAE": {"nerf_blocks.0.norm.scale": torch.zeros(4)},
        "a Chroma in 4 bits (NF4)": {"img_in.weight.quant_state.bitsandbytes__nf4": torch.zeros(4)},
    }
    for words, more in others.items():
        save_file({**tensors, **more}, path)
        assert identify(path).words == words
    bare = {k: v.contiguous() for k, v in theirs.transformer.state_dict().items()}
    save_file(bare, path)
    assert identify(path).words == "only a Chroma transformer, in diffusers' layout"
    assert identify(tiny_chroma.write_base(path, channels=96)).words == "a relative of Chroma with other latents"
    lacking = "distilled_guidance_layer.norms.1.scale"
    save_file({**{k: v for k, v in tensors.items() if k != lacking}, "more": torch.zeros(1)}, path)
    told = faults(lambda: FACTS.check(path, False))
    assert lacking in told and "1 unknown tensors, first more" in told


def test_chroma_and_flux1_are_told_apart(base: Path, tmp_path: Path) -> None:
    """As files and as folders; neither is taken for the other."""
    flux1 = by_name("flux1")
    assert find(base) is FACTS and find(tiny_chroma.write_folder(tmp_path / "chroma")) is FACTS
    other = tiny_flux1.write_base(tmp_path / "flux1.safetensors")
    assert find(other) is flux1 and find(tiny_flux1.write_folder(tmp_path / "flux1")) is flux1
    told = faults(lambda: FACTS.check(other, False))
    assert "the tensor distilled_guidance_layer.in_proj.weight is missing" in told
    assert "the tensor vector_in.in_layer.weight is missing" in faults(lambda: flux1.check(base, False))


# --- text encoders ----------------------------------------------------------------------------------------------------


def test_t5_is_the_only_text_encoder(base: Path, tmp_path: Path) -> None:
    check: Any = FACTS.check_text
    t5 = base.parent / "text" / "t5xxl_fp16.safetensors"
    check(base, [t5])
    told = faults(lambda: check(base, ()))
    assert "this file holds no text encoder that is read" in told and "such as t5xxl_fp16.safetensors" in told
    told = faults(lambda: check(base, [t5, t5]))
    assert "this base has one text encoder, T5" in told and "write t5xxl_fp16.safetensors alone" in told
    assert "this is no T5" in faults(lambda: check(base, [base]))
    folder = tiny_chroma.write_folder(tmp_path / "folder")
    check(folder, ())  # its tokenizer lies in the folder `tokenizer`
    check(base, [folder])
    check(base, [tiny_flux1.write_folder(tmp_path / "flux1")])  # FLUX.1's second
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "t5.safetensors"
    save_file(load_file(t5), alone)
    told = faults(lambda: check(base, [alone]))
    assert "there is no tokenizer.json beside this text encoder" in told
    assert "from FLUX.1's page (folder tokenizer_2)" in told


def test_every_fault_of_a_config_is_told_before_anything_is_loaded(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, sample_size=72)
    assert main(["train", "--config", str(config), "train_text_encoder=true", "targets=[modulation]"]) == 2
    told = capsys.readouterr().err
    assert "train_text_encoder=true: is for" in told and "must be attention, feed_forward, double, single" in told
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert "add vae:" in told and "add text_encoder:" in told and "multiples of 16" in told


def test_the_template_and_new_draw_noise_levels_as_it_was_trained() -> None:
    config = flow_checks.template("chroma")
    assert (config.timestep_sampling, config.timestep_shift) == ("sigmoid", 1.0)
    assert (config.lora_rank, config.learning_rate, config.sample_cfg) == (16, 3e-4, 4.0)
    told = {setting.key: setting.value for setting in FACTS.recipes["style"].settings}
    assert (told["timestep_sampling"], told["timestep_shift"]) == ("sigmoid", "1")
    assert (told["lora_rank"], told["learning_rate"]) == ("16", "3e-4")


# --- LoRA files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["own", "kohya"])
def test_diffusers_draws_with_the_file_what_we_draw(
    family: Any, theirs: Masked, tmp_path: Path, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with kohya's names, in which q, k and v are one layer, through diffusers' own converter."""
    weights, table = lora_of() if names == "own" else in_blocks(), FACTS.names()
    if names == "own":
        own = flow_checks.save_own(FACTS, weights, tmp_path / "lora.safetensors")
        assert "transformer.distilled_guidance_layer.layers.0.linear_1.lora_A.weight" in own
        assert not any(key.endswith(".alpha") for key in own)
    else:
        tensors = kohya.to_kohya(weights, table.kohya, dtype=torch.float32, fused=table.fused)
        save(tmp_path / "lora.safetensors", tensors, {})
        function = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
        convert = narrow(function, ("dims=[3072, 3072, 3072, 12288]", "dims=[64, 64, 64, 256]"))
        monkeypatch.setattr("diffusers.loaders.lora_pipeline._convert_kohya_flux_lora_to_diffusers", convert)
    flow_checks.drawn_with(CASE, family, theirs, weights, tmp_path / "lora.safetensors")


def test_comfyui_finds_every_layer_that_is_trained(base: Path, family: Any) -> None:
    """The network of modulations it knows in the published layout's names alone, which `convert --to kohya` writes."""
    names, asked = FACTS.names(), FACTS.base(base)
    assert family.trainable().keys() == in_blocks().keys()
    form = dialects.own_form(in_blocks(), names, torch.float32)
    reading = comfyui.read(form.tensors, asked)
    assert not reading.faults and reading.changes.keys() == in_blocks().keys()
    more = {path: w for path, w in lora_of().items() if "distilled" in path}
    assert len(more) == 10 and not comfyui.read(dialects.own_form(more, names, torch.float32).tensors, asked).changes
    flat = kohya.to_kohya(more, names.kohya, dtype=torch.float32, fused=names.fused)
    assert comfyui.read(flat, asked).changes.keys() == more.keys()


def test_whose_a_lora_is_the_file_says_or_its_layers(tmp_path: Path) -> None:
    """FLUX.1 has the layers of Chroma's blocks: a file that says nothing is taken for FLUX.1's, or for the base's."""
    path, flux1 = tmp_path / "lora.safetensors", by_name("flux1")

    def told(weights: dict[str, LoraWeights], wanted: Any = None, **metadata: str) -> str:
        tensors = dialects.own_form(weights, FACTS.names(), torch.float32).tensors
        save(path, tensors, {key.replace("__", "."): value for key, value in metadata.items()})
        try:
            return read(path, wanted).family.name if wanted else family_of(path).name
        except UserError as error:
            return str(error)

    assert told(in_blocks()) == "flux1" and told(in_blocks(), FACTS) == "chroma" and told(in_blocks(), flux1) == "flux1"
    assert told(lora_of()) == told(lora_of(), FACTS) == "chroma"  # with the network of modulations
    around = {path: w for path, w in lora_of().items() if "distilled" not in path}
    assert told(around) == "flux1" and told(around, FACTS) == "chroma"
    for says in ({"ss_base_model_version": "chroma"}, {"modelspec__architecture": "chroma/lora"},
                 {"modelspec__architecture": "Chroma1/lora"}):  # fmt: skip
        assert told(in_blocks(), **says) == told(in_blocks(), FACTS, **says) == "chroma"
        assert "this LoRA is for Chroma, the base model is FLUX.1" in told(in_blocks(), flux1, **says)
    for says in ({"ss_base_model_version": "flux1"}, {"modelspec__architecture": "flux-1-dev/lora"}):
        assert "this LoRA is for FLUX.1, the base model is Chroma" in told(in_blocks(), FACTS, **says)
    modulated = flow_checks.lora_of(flux1, tiny_flux1.models().transformer)
    save(path, dialects.own_form(modulated, flux1.names(), torch.float32).tensors, {})
    assert "this LoRA is for FLUX.1, the base model is Chroma" in faults(lambda: read(path, FACTS))
    text = {"lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": torch.ones(2, 24),
            "lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight": torch.ones(24, 2)}  # fmt: skip
    save(path, {**dialects.own_form(in_blocks(), FACTS.names(), torch.float32).tensors, **text},
         {"ss_base_model_version": "chroma"})  # fmt: skip
    assert "of Chroma none takes a LoRA here" in faults(lambda: read(path))


@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model."])
def test_a_lora_on_the_published_layout_is_read(tmp_path: Path, start: str) -> None:
    """As kohya's sd-scripts and ai-toolkit write them: q, k and v are one layer, and with them an MLP."""
    generator, path = torch.Generator().manual_seed(4), tmp_path / "fused.safetensors"
    shapes = {"double_blocks.18.txt_attn.qkv": (9216, 3072), "single_blocks.37.linear1": (21504, 3072)}
    shapes["distilled_guidance_layer.layers.4.in_layer"] = (5120, 5120)
    tensors = {}
    for stem, (out, inner) in shapes.items():
        down, up = torch.randn(2, inner, generator=generator), torch.randn(out, 2, generator=generator)
        if start == "lora_unet_":
            flat = start + stem.replace(".", "_")
            tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        else:
            tensors |= {f"{start}{stem}.lora_A.weight": down, f"{start}{stem}.lora_B.weight": up}
    save(path, tensors, {})
    file = read(path)
    assert file.family is FACTS and len(file.weights) == 8
    up = next(value for value in tensors.values() if len(value) == 21504)
    assert torch.equal(file.weights["transformer.single_transformer_blocks.37.proj_mlp"].up, up[9216:])
