"""FLUX.1, on a narrow random model: numbers against diffusers' own modules, pipeline, scheduler and converters."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin, lora_conversion_utils, single_file_utils
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import flow_checks
import tiny
import tiny_flow
import tiny_flux1
import tiny_flux2
import tiny_zimage
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.base import Sampling
from lora_scripts.families.flux1 import layout
from lora_scripts.families.flux1.check import FILES
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.losses.flow import STEPS
from runs import faults

FACTS = by_name("flux1")

base, family = flow_checks.fixtures(FACTS, tiny_flux1)


@pytest.fixture(scope="module")
def theirs() -> FluxPipeline:
    return pipeline_of(tiny_flux1.models())


def pipeline_of(made: tiny_flux1.Models) -> FluxPipeline:
    """The same model in diffusers' hands."""
    pipe: FluxPipeline = tiny_flux1.pipeline_of(FluxPipeline, made)
    return pipe


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    """At guidance 1."""
    (states, pooled, text_ids), (channels, height, width) = theirs.encode_prompt([caption]), x.shape[1:]
    tokens = theirs.transformer(
        hidden_states=theirs._pack_latents(x, 1, channels, height, width),
        timestep=sigma,
        guidance=torch.ones(1),
        pooled_projections=pooled,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=theirs._prepare_latent_image_ids(1, height // 2, width // 2, torch.device("cpu"), torch.float32),
        return_dict=False,
    )[0]
    return theirs._unpack_latents(tokens, height * 8, width * 8, 8)


def levels(theirs: Any, steps: int, tokens: int) -> None:
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens))


CASE = Case(FACTS, tiny_flux1, FILES, layout, answer, levels=levels)


def narrow(function: Callable[..., Any], *numbers: tuple[str, str]) -> Any:
    """A converter of diffusers', which has the published widths written into it, with others in their place."""
    source = inspect.getsource(function)
    for published, ours in numbers:
        assert published in source
        source = source.replace(published, ours)
    space = dict(vars(inspect.getmodule(function)))  # type: ignore[arg-type]
    exec(source, space)
    return space[function.__name__]


def lora_of() -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_flux1.models().transformer)


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("caption", [*PROMPTS, "", "hello how are you, " * 200])
def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: FluxPipeline, caption: str) -> None:
    """All 512 tokens of T5, those that fill them up too, and CLIP's pooled state; longer ones are cut, and told."""
    ours, (states, pooled, _) = family.encode_text([caption, "hello"]), theirs.encode_prompt([caption, "hello"])
    assert ours["states"].shape == (2, 512, 24) and ours["pooled"].shape == (2, 16)
    assert (ours["states"] - states).abs().max() < 1e-5 and (ours["pooled"] - pooled).abs().max() < 1e-5
    assert (family.encoder.excess(caption) > 0) == (len(theirs.tokenizer_2(caption).input_ids) > 512)


def test_in_half_precision_t5_keeps_what_would_overflow(family: Any) -> None:
    """As transformers loads it: the last layers of its MLPs in fp32."""
    from lora_scripts.families.flow.t5_reader import build_t5

    made = build_t5(family.encoder.texts.t5, torch.float16)
    kinds = {key: value.dtype for key, value in made.state_dict().items()}
    assert {key for key, kind in kinds.items() if kind == torch.float32} == {
        k for k in kinds if k.endswith("wo.weight")
    }
    assert torch.isfinite(made(input_ids=torch.arange(8)[None]).last_hidden_state).all()


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 1024, 4096, 6400])
def test_the_shift_is_theirs(family: Any, theirs: FluxPipeline, tokens: int) -> None:
    scheduler, sigmas = theirs.scheduler, family.objective.sigmas
    for steps in (4, 28, STEPS):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens))
        ours = torch.tensor(sigmas.steps(steps, tokens))
        assert (ours - scheduler.sigmas[:-1]).abs().max() < 1e-6 and ours[0] == 1.0
    # The noisiest level and the least of so many, by value.
    u = torch.tensor([1.0, 1 / STEPS], dtype=torch.float64)
    assert (sigmas.at(u, tokens) - scheduler.sigmas[[0, STEPS - 1]]).abs().max() < 1e-6


def test_a_picture_of_1024_has_4096_tokens_and_the_largest_shift_of_the_line(family: Any) -> None:
    assert family.tokens(torch.empty(1, 16, 128, 128)) == 4096
    assert family.objective.sigmas.factor(4096) == pytest.approx(math.exp(1.15))
    assert family.objective.sigmas.factor(256) == pytest.approx(math.exp(0.5))


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: FluxPipeline) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, STEPS)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: FluxPipeline, guidance: float) -> None:
    """`cfg` is the guidance that dev is told."""
    draw = partial(drawn, theirs, guidance_scale=guidance)
    flow_checks.preview(CASE, family, theirs, draw, cfg=guidance)


def test_guidance_changes_the_picture(family: Any) -> None:
    one, other = (np.asarray(family.generate("hello", 7, Sampling(2, cfg, size=(64, 64)))) for cfg in (1.0, 7.0))
    assert not np.array_equal(one, other)


def drawn(pipe: FluxPipeline, noise: torch.Tensor, size: dict[str, int], **more: Any) -> Any:
    packed = pipe._pack_latents(noise, *noise.shape)
    return pipe(PROMPTS[0], latents=packed, **size, **more).images[0]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_schnell_is_told_no_guidance_and_does_not_shift(tmp_path: Path, kind: str) -> None:
    made = tiny_flux1.models(guidance=False)
    if kind == "file":
        path = tiny_flux1.write_base(tmp_path / "schnell.safetensors", guidance=False)
        beside: Any = tiny_flux1.beside(tmp_path)
    else:
        path, beside = tiny_flux1.write_folder(tmp_path / "schnell", guidance=False), {}
    schnell: Any = load_family(FACTS, path, replace(OPTIONS, **beside))
    assert schnell.objective.sigmas.factor(4096) == 1.0
    theirs = pipeline_of(made)
    flow_checks.preview(CASE, schnell, theirs, partial(drawn, theirs), cfg=7.0)


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_rows_of_the_published_widths_are_diffusers_parameters() -> None:
    with torch.device("meta"):
        built = FluxTransformer2DModel(guidance_embeds=True)
        ours = FluxTransformer2DModel(**layout.config_of(layout.STANDARD))
    shapes = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    assert {row.hf: row.model_shape for row in layout.rows(layout.STANDARD)} == shapes
    given, wanted = ({k: v for k, v in made.config.items() if k != "_use_default_values"} for made in (ours, built))
    assert given == wanted
    assert sum(map(math.prod, shapes.values())) == 11_901_408_320


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("guidance", [True, False])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str, *, guidance: bool) -> None:
    path = tiny_flux1.write_base(tmp_path / "base.safetensors", prefix=prefix, guidance=guidance)
    convert = narrow(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers, ("= 3072", "= 64"))
    flow_checks.one_file(CASE, path, prefix, tiny_flux1.models(guidance=guidance).transformer, convert)


def test_weights_in_fp8_with_a_scale_are_made_whole(base: Path, tmp_path: Path) -> None:
    """Of the transformer and of T5, as ComfyUI's `fp8_scaled` files have them; and plain fp8."""
    text = base.parent / "text" / "t5xxl_fp16.safetensors"
    key, wo = "single_blocks.0.linear1.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    one, two = load_file(base), load_file(text)
    wanted = {}
    for tensors, name in ((one, key), (two, wo)):
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name.removesuffix('.weight')}.scale_weight"] = scale
        wanted[name] = tensors[name].float() * scale
    plain = "double_blocks.0.txt_mlp.0.weight"
    one[plain] = one[plain].to(torch.float8_e4m3fn)
    save_file({**one, "scaled_fp8": torch.zeros(2)}, tmp_path / "fp8.safetensors")
    tiny_flux1.write_texts(tmp_path / "text", tiny_flux1.models())
    save_file({**two, "scaled_fp8": torch.zeros(2)}, tmp_path / "text" / "t5xxl_fp16.safetensors")
    FACTS.check(tmp_path / "fp8.safetensors", False)
    beside: Any = {**tiny_flux1.beside(tmp_path), "vae": base.parent / "ae.safetensors"}
    family: Any = load_family(FACTS, tmp_path / "fp8.safetensors", replace(OPTIONS, **beside))
    state = family.transformer.state_dict()
    parts = [state[f"single_transformer_blocks.0.{name}.weight"] for name in ("attn.to_q", "attn.to_k", "attn.to_v")]
    assert torch.equal(torch.cat([*parts, state["single_transformer_blocks.0.proj_mlp.weight"]]), wanted[key])
    assert torch.equal(state["transformer_blocks.0.ff_context.net.0.proj.weight"].float(), one[plain].float())
    family.encode_text(["hello"])
    assert torch.equal(family.encoder._model.state_dict()[wo], wanted[wo])


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    """So that merging adds to the right rows, also of the layer that holds q, k, v and the MLP."""
    assert flow_checks.misplaced(FACTS, base, tiny_flux1.beside) == []


RELATIVES = {
    "Fill": ({"channels": 384}, {}, "a FLUX.1 Fill, which fills in pictures"),
    "Canny": ({"channels": 128}, {}, "a FLUX.1 that is led by a second picture (Canny, Depth)"),
    "others": ({"channels": 96}, {}, "a relative of FLUX.1 with other latents"),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_are_refused_by_name(tmp_path: Path, name: str) -> None:
    of, metadata, words = RELATIVES[name]
    made: Any = tiny_flux1.models(**of)
    save_file({k: v.contiguous() for k, v in tiny_flux1.native(made.transformer.state_dict()).items()},
              tmp_path / "file.safetensors", metadata)  # fmt: skip
    assert identify(tmp_path / "file.safetensors").words == words
    assert identify(tiny_flux1.write_folder(tmp_path / "folder", **of)).words == words


def test_kontext_is_a_base_as_dev_is(tmp_path: Path) -> None:
    """Its file has nothing that tells it from dev's, so its folder is taken alike."""
    folder = tiny_flux1.write_folder(tmp_path / "folder", pipeline="FluxKontextPipeline")
    assert identify(folder) is FACTS.checkpoint


def test_files_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base)
    others = {
        "a Chroma checkpoint": {"distilled_guidance_layer.in_proj.weight": torch.zeros(4, 4)},
        "a FLUX.1 in 4 bits (NF4)": {"img_in.weight.quant_state.bitsandbytes__nf4": torch.zeros(4)},
    }
    for words, more in others.items():
        save_file({**tensors, **more}, tmp_path / "file.safetensors")
        assert identify(tmp_path / "file.safetensors").words == words
    bare = {k: v.contiguous() for k, v in tiny_flux1.models().transformer.state_dict().items()}
    save_file(bare, tmp_path / "file.safetensors")
    assert identify(tmp_path / "file.safetensors").words == "only a FLUX.1 transformer, in diffusers' layout"
    (tmp_path / "file.gguf").write_bytes(b"GGUF\x03" + bytes(19))
    assert identify(tmp_path / "file.gguf").words == "a GGUF file (quantised)"
    assert identify(tiny_flux2.write_base(tmp_path / "flux2.safetensors")) is by_name("flux2").checkpoint
    int8 = tensors["single_blocks.0.linear1.weight"].to(torch.int8)
    save_file({**tensors, "single_blocks.0.linear1.weight": int8}, tmp_path / "file.safetensors")
    assert "this is a quantised file" in faults(lambda: FACTS.check(tmp_path / "file.safetensors", False))
    del tensors["single_blocks.1.linear2.weight"]
    save_file({**tensors, "more": torch.zeros(1)}, tmp_path / "file.safetensors")
    told = faults(lambda: FACTS.check(tmp_path / "file.safetensors", False))
    assert "single_blocks.1.linear2.weight" in told and "1 unknown tensors, first more" in told


# --- text encoders ----------------------------------------------------------------------------------------------------


def test_two_text_encoders_are_told_apart_by_what_is_in_them(base: Path, tmp_path: Path) -> None:
    assert FACTS.check_text is not None
    check: Any = FACTS.check_text
    clip, t5 = base.parent / "text" / "clip_l.safetensors", base.parent / "text" / "t5xxl_fp16.safetensors"
    check(base, [clip, t5])
    check(base, [t5, clip])
    both = "text_encoder: [clip_l.safetensors, t5xxl_fp16.safetensors]"
    told = faults(lambda: check(base, ()))
    assert "no text encoders that are read" in told and f"add {both}" in told
    assert "there is no T5" in (told := faults(lambda: check(base, [clip]))) and f"write {both}, in any order" in told
    assert "there is no CLIP" in faults(lambda: check(base, [t5]))
    assert "more than one CLIP" in faults(lambda: check(base, [clip, clip, t5]))
    assert "is neither CLIP-L nor T5" in faults(lambda: check(base, [base, clip, t5]))
    folder = tiny_flux1.write_folder(tmp_path / "folder")
    check(folder, ())
    check(base, [folder])  # those of a diffusers folder
    check(base, [folder / "text_encoder_2", clip])


def test_text_encoders_of_another_model_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    check: Any = FACTS.check_text
    own = base.parent / "text"
    made = tiny_flux1.models()
    wide = {"d_model": 40, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    clip = CLIPTextModel(CLIPTextConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=1))
    tiny_flux1.write_texts(tmp_path, made._replace(t5=T5EncoderModel(T5Config(**wide)), clip=clip))
    parts = [tmp_path / name for name in ("clip_l.safetensors", "t5xxl_fp16.safetensors")]
    told = faults(lambda: check(base, parts))
    assert "has 49408 tokens of width 24, the base reads 49408 of 16" in told  # both at once
    assert "this T5 gives states of width 40, the base reads 24" in told
    pieces = [own / "clip_l.safetensors", tmp_path / "alone" / "t5.safetensors"]
    pieces[1].parent.mkdir()
    tensors = load_file(own / "t5xxl_fp16.safetensors")
    save_file(tensors, pieces[1])
    assert "there is no tokenizer.json beside this text encoder" in (told := faults(lambda: check(base, pieces)))
    assert "folder tokenizer_2" in told
    # Beside the files of several text encoders lies the tokenizer of another: T5's in a folder of its own.
    qwen = tiny_flow.write_text(pieces[1].parent / "qwen.safetensors", tiny_zimage.models())
    assert "this tokenizer does not know </s>, <pad>" in faults(lambda: check(base, pieces))
    qwen.with_name("tokenizer_2").mkdir()
    made.tokenizer.backend_tokenizer.save(str(pieces[1].parent / "tokenizer_2" / "tokenizer.json"))
    check(base, pieces)
    # version 1.0 has no gate.
    old = {k.replace("wi_0", "wi"): v for k, v in tensors.items() if "wi_1" not in k}
    save_file(old, pieces[1])
    assert "DenseReluDense.wi_0.weight is missing" in faults(lambda: check(base, pieces))
    for key, words in (("more", "1 unknown tensors, first more"), ("", "1 of 21 tensors of the T5 are missing")):
        broken = {**tensors, "more": torch.zeros(1)} if key else {k: v for k, v in tensors.items() if "final" not in k}
        save_file(broken, pieces[1])
        assert words in faults(lambda: check(base, pieces))


def test_every_fault_of_a_config_is_told_before_anything_is_loaded(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, sample_size=72)
    assert main(["train", "--config", str(config), 'sample_prompts=["a cat --n dog"]']) == 2
    told = capsys.readouterr().err
    assert "add vae:" in told and "add text_encoder: [clip_l" in told and "multiples of 16" in told
    assert "FLUX.1 reads no negative prompt, and would be drawn without 'dog'" in told
    beside = tiny_flux1.beside(base.parent)
    more = [f"{key}={tiny.written(path)}" for key, path in beside.items()]
    assert main(["train", "--config", str(config), "sample_size=64", "sample_negative=blurry", *more]) == 2
    assert "sample_negative" in (told := capsys.readouterr().err) and "that read a negative prompt" in told
    twice = f"text_encoder=[{base}, {base}]"
    assert main(["train", "--config", str(config), twice]) == 2
    assert "names the same file twice" in capsys.readouterr().err
    assert main(["train", "--config", str(config), "text_encoder=[nowhere.safetensors, 3]"]) == 2
    assert "must be a path" in capsys.readouterr().err
    assert main(["train", "--config", str(config), f"text_encoder=[nowhere.safetensors, {base}]"]) == 2
    assert "nowhere.safetensors does not exist; put the text encoder there" in capsys.readouterr().err


def test_a_config_whose_numbers_are_none_is_told_and_does_not_crash(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    written = {"_class_name": "FluxTransformer2DModel", "in_channels": [64]}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(written))
    assert "a relative of FLUX.1 with other latents" in faults(lambda: find(tmp_path))


def test_the_template_names_what_stands_beside_the_base() -> None:
    template = flow_checks.template("flux1").base_model
    config = flow_checks.template("flux1", text_encoder=f"[{template}, {__file__}]")
    assert config.text_encoder == (template, Path(__file__)) and config.sample_cfg == 3.5


# --- LoRA files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["own", "kohya"])
def test_diffusers_draws_with_the_file_what_we_draw(
    family: Any, theirs: FluxPipeline, tmp_path: Path, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with kohya's names, in which q, k and v are one layer, through diffusers' own converter."""
    weights, table = lora_of(), FACTS.names()
    if names == "own":
        own = flow_checks.save_own(FACTS, weights, tmp_path / "lora.safetensors")
        assert not any(key.endswith(".alpha") for key in own)
    else:
        weights = flow_checks.in_blocks(weights)  # the others it does not read in this naming
        tensors = kohya.to_kohya(weights, table.kohya, dtype=torch.float32, fused=table.fused)
        save(tmp_path / "lora.safetensors", tensors, {})
        function = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
        convert = narrow(function, ("dims=[3072, 3072, 3072, 12288]", "dims=[64, 64, 64, 256]"))
        monkeypatch.setattr("diffusers.loaders.lora_pipeline._convert_kohya_flux_lora_to_diffusers", convert)
    flow_checks.drawn_with(CASE, family, theirs, weights, tmp_path / "lora.safetensors")


def test_a_file_in_kohyas_names_comes_back_as_it_was(tmp_path: Path) -> None:
    """Three LoRAs as one have the sum of their ranks; and one whose A is the same for all keeps its rank."""
    table, weights = FACTS.names(), lora_of()
    tensors = kohya.to_kohya(weights, table.kohya, dtype=torch.float32, fused=table.fused, turned=table.turned)
    stems = {key.partition(".")[0] for key in tensors}
    assert {"lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_1_linear1"} <= stems and len(
        stems
    ) == 16 + 10
    assert tensors["lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight"].shape == (6, 64)
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (448, 8)
    save(tmp_path / "kohya.safetensors", tensors, {})
    back = read(tmp_path / "kohya.safetensors").weights
    assert back.keys() == weights.keys()
    for path, w in weights.items():
        assert torch.equal(back[path].up, w.up) and torch.equal(back[path].down, w.down) and back[path].alpha == w.alpha
    qkv = {p: w for p, w in weights.items() if p.endswith(("0.attn.to_q", "0.attn.to_k")) and ".transformer_b" in p}
    down = qkv["transformer.transformer_blocks.0.attn.to_q"].down
    alike = {path: replace(w, down=down) for path, w in qkv.items()}
    shared = kohya.to_kohya(alike, table.kohya, dtype=torch.float32, fused=table.fused)
    up = shared["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"]
    assert up.shape == (192, 2) and not up[128:].any()
    save(tmp_path / "shared.safetensors", shared, {})
    assert read(tmp_path / "shared.safetensors").weights.keys() == alike.keys()


def comfy_names(width: int = 64) -> dict[str, tuple[str, int]]:
    """Stem -> (its own layer, first row), written by hand from what ComfyUI asks a LoRA of FLUX.1 for."""
    inner = {f"attn.to_{leaf}": ("img_attn.qkv", n * width) for n, leaf in enumerate("qkv")}
    inner |= {f"attn.add_{leaf}_proj": ("txt_attn.qkv", n * width) for n, leaf in enumerate("qkv")}
    inner |= {"attn.to_out.0": ("img_attn.proj", 0), "attn.to_add_out": ("txt_attn.proj", 0)}
    inner |= {"norm1.linear": ("img_mod.lin", 0), "norm1_context.linear": ("txt_mod.lin", 0)}
    for ff, mlp in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        inner |= {f"{ff}.net.0.proj": (f"{mlp}.0", 0), f"{ff}.net.2": (f"{mlp}.2", 0)}
    table = {
        f"transformer.transformer_blocks.0.{name}": (f"double_blocks.0.{own}", row)
        for name, (own, row) in inner.items()
    }
    for n in (0, 1):
        at = f"transformer.single_transformer_blocks.{n}"
        table |= {f"{at}.attn.to_{leaf}": (f"single_blocks.{n}.linear1", k * width) for k, leaf in enumerate("qkv")}
        table |= {f"{at}.proj_mlp": (f"single_blocks.{n}.linear1", 3 * width)}
        table |= {f"{at}.proj_out": (f"single_blocks.{n}.linear2", 0)}
        table |= {f"{at}.norm.linear": (f"single_blocks.{n}.modulation.lin", 0)}
    outer = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    outer |= {"norm_out.linear": "final_layer.adaLN_modulation.1"}
    for name, own in (("timestep", "time_in"), ("text", "vector_in"), ("guidance", "guidance_in")):
        outer |= {f"time_text_embed.{name}_embedder.linear_1": f"{own}.in_layer"}
        outer |= {f"time_text_embed.{name}_embedder.linear_2": f"{own}.out_layer"}
    return table | {f"transformer.{name}": (own, 0) for name, own in outer.items()}


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    table = comfy_names()
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert stems == table.keys() and len({table[stem] for stem in stems}) == len(stems) == 26 + 10
    reading = comfyui.read(form.tensors, FACTS.base(base))
    assert not reading.faults and reading.changes.keys() == lora_of().keys()


@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model."])
def test_a_lora_on_the_published_layout_is_read_as_diffusers_reads_it(tmp_path: Path, start: str) -> None:
    """As kohya's sd-scripts writes them, at the published widths: q, k and v are one layer, and with them an MLP."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    shapes = {"double_blocks.18.txt_attn.qkv": (9216, 3072), "single_blocks.37.linear1": (21504, 3072)}
    for stem, (out, inner) in shapes.items():
        down, up = torch.randn(4, inner, generator=generator), torch.randn(out, 4, generator=generator)
        if start == "lora_unet_":
            flat = start + stem.replace(".", "_")
            tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
            tensors[f"{flat}.alpha"] = torch.tensor(2.0)
        else:
            tensors |= {f"{start}{stem}.lora_A.weight": down, f"{start}{stem}.lora_B.weight": up}
    save(tmp_path / "fused.safetensors", tensors, {})
    file = read(tmp_path / "fused.safetensors")
    assert file.family is FACTS and len(file.weights) == 7
    mlp = file.weights["transformer.single_transformer_blocks.37.proj_mlp"]
    up = next(value for key, value in tensors.items() if "linear1" in key and len(value.shape) and len(value) == 21504)
    assert torch.equal(mlp.up, up[9216:])
    if start == "lora_unet_":  # of the others diffusers takes only whole models that are led by a picture
        want = FluxLoraLoaderMixin.lora_state_dict(str(tmp_path / "fused.safetensors"))
        for path, w in file.weights.items():
            theirs = want[f"{path}.lora_B.weight"][:64] @ want[f"{path}.lora_A.weight"]
            assert torch.allclose(w.up[:64] @ w.down * w.alpha / w.rank, theirs, atol=1e-4), path


def test_loras_of_flux1_and_flux2_are_told_apart(tmp_path: Path) -> None:
    """They share names; what differs is how many rows a layer has for its columns, and how many blocks there are."""

    def family_with(stem: str, rows: int, columns: int, n: int = 0) -> str:
        name = f"lora_unet_{stem.format(n)}"
        up, down = torch.ones(rows, 2), torch.ones(2, columns)
        tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        save(tmp_path / "lora.safetensors", tensors, {})
        return family_of(tmp_path / "lora.safetensors").name

    assert family_with("single_blocks_{}_linear1", 7 * 64, 64) == "flux1"
    assert family_with("single_blocks_{}_linear1", 9 * 64, 64) == "flux2"
    assert family_with("double_blocks_{}_img_mlp_2", 64, 4 * 64) == "flux1"
    assert family_with("double_blocks_{}_img_mlp_2", 64, 3 * 64) == "flux2"
    assert family_with("double_blocks_{}_img_attn_proj", 64, 64) == "flux1"  # either: the one that has far more of them
    assert family_with("double_blocks_{}_img_mod_lin", 6 * 64, 64) == "flux1"


@pytest.mark.parametrize("start", ["transformer.", "diffusion_model.", "lycoris_", ""])
def test_a_lora_of_sd3_is_none_of_flux1(tmp_path: Path, start: str) -> None:
    """Its attention has the same names: in 24 or 38 blocks where FLUX.1 has 19, 1536 or 2432 wide."""

    def told(blocks: int, width: int) -> str:
        tensors = {}
        for n in range(blocks):
            name = f"transformer_blocks.{n}.attn.to_q"
            stem = start + (name.replace(".", "_") if start == "lycoris_" else name)
            tensors |= {
                f"{stem}.lora_up.weight": torch.ones(width, 1),
                f"{stem}.lora_down.weight": torch.ones(1, width),
            }
        path = tmp_path / "lora.safetensors"
        save(path, tensors, {})
        try:
            return read(path, FACTS).family.name
        except UserError as error:
            return str(error)

    assert told(19, 64) == told(19, 3072) == told(4, 3072) == "flux1"
    for blocks, width in ((24, 64), (19, 1536), (4, 2432)):
        assert "this LoRA is for Stable Diffusion 3.5, the base model is FLUX.1" in told(blocks, width)
    assert "this is a LoRA for a diffusion transformer that is not known here" in told(38, 3072)


@pytest.mark.parametrize("form", ["peft", "lycoris", "diffusion_model", "folder"])
def test_loras_of_other_trainers_are_read(tmp_path: Path, form: str) -> None:
    """diffusers' examples, ai-toolkit, SimpleTuner and PEFT's own: the same layers in other dresses."""
    weights = {path: replace(w, alpha=float(w.rank)) for path, w in lora_of().items()}
    start = {"peft": "transformer.", "lycoris": "lycoris_", "diffusion_model": "diffusion_model."}.get(form, "")
    if form == "folder":
        from lora_scripts.workshop.convert import convert

        own = dialects.own_form(weights, FACTS.names(), torch.float32)
        save(tmp_path / "own.safetensors", own.tensors, own.metadata)
        convert(tmp_path / "own.safetensors", "peft", output=tmp_path / "adapter")
        path = tmp_path / "adapter"
    else:
        tensors = {}
        for name, w in weights.items():
            inner = name.removeprefix("transformer.")
            stem = start + (inner.replace(".", "_") if form == "lycoris" else inner)
            ends = (
                (".lora_down.weight", ".lora_up.weight") if form == "lycoris" else (".lora_A.weight", ".lora_B.weight")
            )
            tensors |= {stem + ends[0]: w.down, stem + ends[1]: w.up}
        path = tmp_path / "file.safetensors"
        save(path, tensors, {})
    back = read(path, FACTS).weights
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[p].up, w.up) and back[p].alpha == w.alpha for p, w in weights.items())


def test_a_stored_base_and_recomputed_blocks_train(data: Path, tmp_path: Path) -> None:
    folder = tiny_flux1.write_folder(tmp_path / "base")
    written = read(flow_checks.trained(folder, data, tmp_path, batch_size=2, targets="[attention, modulation]")).weights
    assert {path.rpartition(".")[2] for path in written} >= {"to_q", "linear"} and not any(".ff." in p for p in written)


def test_a_text_encoder_that_does_not_fit_comes_block_by_block(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_checks.block_by_block(family, monkeypatch)


def test_a_file_that_diffusers_asserts_not_to_be_is_told_beside_the_other_programs(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its converter of kohya's names knows one width alone."""
    stem = "lora_unet_single_blocks_0_linear1"
    keys = {f"{stem}.lora_down.weight": torch.ones(2, 64), f"{stem}.lora_up.weight": torch.ones(448, 2)}
    save(tmp_path / "x.safetensors", keys, {})
    words = ["verify", str(tmp_path / "x.safetensors"), "--base", str(base), "--in", "diffusers", "ComfyUI"]
    assert main(words) == 2
    told = capsys.readouterr().out
    assert "the loading stops: AssertionError" in told and "ComfyUI: 4 of 4 modules, ΔW equal" in told
