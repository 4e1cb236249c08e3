"""Krea 2, on a narrow random model: numbers against diffusers' own modules, pipeline, scheduler and converters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
from diffusers.pipelines.krea2.pipeline_krea2 import calculate_shift
from safetensors.torch import load_file, save_file

import flow_checks
import tiny_anima
import tiny_flow
import tiny_krea2
import tiny_qwen
import tiny_zimage
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.compute import memory
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.krea2 import layout
from lora_scripts.families.krea2.check import FILES
from lora_scripts.families.table import by_name, find, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.workshop.inspect import inspect
from runs import faults

FACTS = by_name("krea2")
PUBLISHED_TAPS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)

base, family = flow_checks.fixtures(FACTS, tiny_krea2)


@pytest.fixture(scope="module")
def theirs() -> Krea2Pipeline:
    kind = partial(Krea2Pipeline, text_encoder_select_layers=tiny_krea2.TAPS)
    return flow_checks.pipeline_of(kind, tiny_krea2.models(), tiny_krea2.scheduler())


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    channels, height, width = x.shape[1:]
    states, mask = theirs.encode_prompt(caption)
    tokens = theirs.transformer(
        hidden_states=theirs._pack_latents(x, 1, channels, height, width),
        timestep=sigma,
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        position_ids=theirs.prepare_position_ids(states.shape[1], height // 2, width // 2, x.device),
        return_dict=False,
    )[0]
    return theirs._unpack_latents(tokens, height * 8, width * 8).squeeze(2)


def levels(theirs: Any, steps: int, tokens: int) -> None:
    mu = calculate_shift(tokens, 256, 6400, 0.5, 1.15)
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


CASE = Case(FACTS, tiny_krea2, FILES, layout, answer, flow_checks.film_latents, levels)


def test_the_rows_of_the_published_widths_are_the_models_parameters() -> None:
    """As diffusers builds it without any argument; its layers are the 264 that others train."""
    with torch.device("meta"):
        model = Krea2Transformer2DModel()
    rows = layout.rows(layout.STANDARD)
    assert {row.hf: row.model_shape for row in rows} == {k: tuple(p.shape) for k, p in model.state_dict().items()}
    assert sum(math.prod(row.shape) for row in rows) == 12_820_073_036
    assert all(model.config[key] == value for key, value in layout.config_of(layout.STANDARD).items())
    assert layout.layout_from(model.config) == layout.STANDARD and len(FACTS.names().written) == 264


def test_the_template_names_what_stands_beside_the_base() -> None:
    config = flow_checks.template("krea2")
    assert config.text_encoder == (config.base_model,) and config.base_precision == "fp8"
    assert config.size == (1024, 1024) and [rule.match for rule in config.rules] == ["*"]


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def wanted(theirs: Any, caption: str) -> torch.Tensor:
    """Their states of a caption's own tokens, [tokens, taps, width]; they fill it up before its end."""
    states, mask = theirs.encode_prompt(caption)
    assert states.shape[1] == 512 - 5 + len(theirs.tokenizer(theirs.prompt_template_encode_suffix)["input_ids"])
    found: torch.Tensor = states[0][mask[0]]
    return found


def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Krea2Pipeline) -> None:
    """Without the first 34 tokens, by a model without its vision tower and without the layers behind the last tap."""
    ours = family.encode_text(PROMPTS)
    for row, length, caption in zip(ours["states"], ours["lengths"].tolist(), PROMPTS, strict=True):
        want = wanted(theirs, caption)
        assert length == len(want) and not row[length:].any()
        assert (row[:length].unflatten(-1, (2, -1)) - want).abs().max() < 1e-4 * want.abs().max()
    assert ours["lengths"][0] > ours["lengths"][1] > 0
    assert not hasattr(family.encoder._model, "visual") and len(family.encoder._model.layers) == 3


def test_a_caption_that_is_too_long_is_cut_before_its_end_and_told(family: Any, theirs: Krea2Pipeline) -> None:
    long = "hello how are you " * 160
    (ours,), want = family.encode_text([long])["states"], wanted(theirs, long)
    assert len(ours) == len(want) and (ours.unflatten(-1, (2, -1)) - want).abs().max() < 1e-4 * want.abs().max()
    whole = theirs.tokenizer(theirs.prompt_template_encode_prefix + long)["input_ids"]
    assert family.encoder.excess(long) == len(whole) - 34 - 507 > 0 == family.encoder.excess("hello")


def test_the_layers_that_are_read_are_the_published_ones(base: Path, tmp_path: Path) -> None:
    """A file is taken for the published model, a folder says it itself."""
    every = [(n + 1) * 36 // 12 - 1 for n in range(12)]
    assert tuple(every) == PUBLISHED_TAPS == Krea2Pipeline(*[None] * 5).text_encoder_select_layers
    text: Any = tiny_krea2.beside(base.parent)["text_encoder"]
    assert FILES.find_text(base, text).taps == tiny_krea2.TAPS
    folder = tiny_krea2.write_folder(tmp_path / "folder", text_encoder_select_layers=[0, 4])
    assert FILES.find_text(folder, ()).taps == (0, 4)
    index = folder / "model_index.json"
    for told, words in (([1], "does not name 2 layers"), ([1, "3"], "does not name"), ([1, 5], "has 4 layers")):
        index.write_text(json.dumps({"text_encoder_select_layers": told}), encoding="utf-8")
        assert words in faults(lambda: FILES.find_text(folder, ()))


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 256, 4096, 6400])
def test_the_levels_are_those_of_the_published_sampler(family: Any, theirs: Krea2Pipeline, tokens: int) -> None:
    """By value; 4096 tokens are 1024 x 1024 pixels."""
    levels(theirs, 28, tokens)
    ours = torch.tensor(family.objective.sigmas.steps(28, tokens))
    assert (ours - theirs.scheduler.sigmas[:-1]).abs().max() < 1e-6 and ours[0] == 1.0
    assert family.objective.sigmas.factor(4096) == pytest.approx(2.475, abs=1e-4)


def test_a_folder_of_the_distilled_model_has_levels_of_its_own(tmp_path: Path, theirs: Krea2Pipeline) -> None:
    made: Any = load_family(FACTS, tiny_krea2.write_folder(tmp_path / "turbo", is_distilled=True), OPTIONS)
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=1.15)
    for tokens in (16, 4096):
        ours = torch.tensor(made.objective.sigmas.steps(8, tokens))
        assert (ours - theirs.scheduler.sigmas[:-1]).abs().max() < 1e-6


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Krea2Pipeline) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, steps=20)


def test_a_neighbour_with_a_longer_caption_changes_nothing(family: Any) -> None:
    flow_checks.neighbour(family)


def test_norms_stay_in_float32_as_diffusers_keeps_them(base: Path, tmp_path: Path) -> None:
    """Their scales lie around 0 and 1 is added: rounded to bf16 before that, they are wrong in the third digit."""
    model = FILES.load(base, torch.bfloat16)
    memory.place(model, MemoryOptions(), torch.device("cpu"), torch.bfloat16, list(model.transformer_blocks))
    tiny_krea2.models().transformer.save_pretrained(tmp_path)
    own = Krea2Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).state_dict()
    flow_checks.same(model.state_dict(), own)
    assert {value.dtype for value in own.values()} == {torch.float32, torch.bfloat16}


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 5.5])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Krea2Pipeline, cfg: float) -> None:
    """Whose own scale is 1 less."""

    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        more = {"guidance_scale": cfg - 1, "negative_prompt": "hello"}
        return theirs(PROMPTS[0], latents=theirs._pack_latents(noise, *noise.shape), **more, **size).images[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative="hello")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str) -> None:
    path = tiny_krea2.write_base(tmp_path / "base.safetensors", prefix=prefix)
    own = tiny_krea2.models().transformer
    flow_checks.one_file(CASE, path, prefix, own, convert_krea2_transformer_checkpoint_to_diffusers)


def test_the_groups_hold_the_layers_that_they_name() -> None:
    def inside(group: str) -> set[str]:
        return {p.removeprefix("transformer.") for p in lora_of() if FACTS.groups[group](p)}

    leaves = {"attention": [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_gate", "to_out.0")]}
    leaves["feed_forward"] = [f"ff.{name}" for name in ("gate", "up", "down")]
    for group, names in leaves.items():
        assert inside(group) == {f"transformer_blocks.{n}.{name}" for n in (0, 1) for name in names}
    assert len(inside("text_fusion")) == 2 * 8 + 1 and "text_fusion.projector" in inside("text_fusion")


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_krea2.beside) == []


@torch.no_grad()
def test_a_file_in_fp8_or_int8_is_read_by_its_scales_and_one_without_named(base: Path, tmp_path: Path) -> None:
    tensors, key = load_file(base), "blocks.0.attn.wq.weight"
    scale, whole = tensors[key].abs().max() / 448, tensors[key]
    tensors[key] = (whole / scale).to(torch.float8_e4m3fn)
    path = tmp_path / "fp8.safetensors"
    save_file({**tensors, key.replace(".weight", ".weight_scale"): scale}, path)
    FACTS.check(path, False)
    state = FILES.load(path, torch.float32).state_dict()
    assert torch.equal(state["transformer_blocks.0.attn.to_q.weight"], tensors[key].float() * scale)
    save_file({**tensors, key: whole.to(torch.int8)}, tmp_path / "int8.safetensors")
    assert "this is a quantised file" in faults(lambda: FACTS.check(tmp_path / "int8.safetensors", False))
    scale = whole.abs().amax(1, keepdim=True) / 127
    codes = (whole / scale).round().to(torch.int8)
    save_file({**tensors, key: codes, key.replace(".weight", ".weight_scale"): scale}, tmp_path / "int8.safetensors")
    FACTS.check(tmp_path / "int8.safetensors", False)
    state = FILES.load(tmp_path / "int8.safetensors", torch.float32).state_dict()
    torch.testing.assert_close(state["transformer_blocks.0.attn.to_q.weight"], codes.float() * scale)


def test_a_text_encoder_is_read_in_every_spelling(base: Path, family: Any, tmp_path: Path) -> None:
    """As ComfyUI, transformers' folder of the whole chat model and the pipeline's folder have it."""
    from transformers import Qwen3VLForConditionalGeneration

    made = tiny_krea2.models()
    chat = Qwen3VLForConditionalGeneration(made.text.config)
    chat.model.load_state_dict(made.text.state_dict())
    want = family.encode_text(["hello"])["states"]
    for name, model in (("chat", chat), ("pipeline", made.text)):
        model.save_pretrained(tmp_path / name)
        made.tokenizer.save_pretrained(tmp_path / name)
        parts: Any = {**tiny_krea2.beside(base.parent), "text_encoder": [tmp_path / name]}
        assert torch.equal(load_family(FACTS, base, replace(OPTIONS, **parts)).encode_text(["hello"])["states"], want)


def test_relatives_and_parts_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    check_text = FACTS.check_text
    assert check_text is not None
    bare = tmp_path / "bare.safetensors"
    save_file({k: v.contiguous() for k, v in tiny_krea2.models().transformer.state_dict().items()}, bare)
    assert "this is only a Krea 2 transformer, in diffusers' layout" in faults(lambda: find(bare))
    assert "(such as qwen3vl_4b_bf16.safetensors)" in faults(lambda: check_text(base, ()))
    assert "add vae: the file qwen_image_vae.safetensors" in faults(lambda: FACTS.check(base, True))
    # Qwen3-4B has the very layers of Qwen3-VL-4B, and other numbers: the vision tower alone tells them apart.
    own = load_file(base.parent / "text" / "qwen3vl_4b_bf16.safetensors")
    blind = tmp_path / "blind" / "qwen_3_4b.safetensors"
    blind.parent.mkdir()
    save_file({key: value for key, value in own.items() if not key.startswith("visual.")}, blind)
    assert "this is no Qwen3-VL text encoder" in faults(lambda: check_text(base, [blind]))
    zimage, of_zimage = tiny_zimage.write_base(tmp_path / "zimage.safetensors"), by_name("zimage").check_text
    assert of_zimage is not None
    text: Any = tiny_krea2.beside(base.parent)["text_encoder"]
    assert "this is no Qwen3 text encoder" in faults(lambda: of_zimage(zimage, text))
    for layers, width, words in ((1, 32, "has 1 layers"), (4, 48, "gives states of width 48, the base reads 32")):
        made = tiny_krea2.models()._replace(text=tiny_krea2.language(layers=layers, width=width)[0])
        path = tiny_krea2.write_text(tmp_path / str(width) / "qwen.safetensors", made)
        assert words in faults(lambda path=path: check_text(base, [path]))  # type: ignore[misc]
    tiny_flow.autoencoder().save_pretrained(tmp_path / "vae")
    assert "a VAE of pictures alone, not the VAE of Krea 2" in faults(lambda: FACTS.check_vae(tmp_path / "vae"))
    cut = {key: value for key, value in load_file(base).items() if key != "blocks.1.mod.lin"}
    save_file(cut, tmp_path / "cut.safetensors")
    assert "blocks.1.mod.lin" in faults(lambda: FACTS.check(tmp_path / "cut.safetensors", False))


# --- LoRA files -------------------------------------------------------------------------------------------------------


def lora_of(alpha: float = 0.5) -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_krea2.models().transformer, alpha=alpha)


def native() -> set[str]:
    """The layers in the names of Krea's own code."""
    state = tiny_krea2.published(tiny_krea2.models().transformer.state_dict())
    return {key.removesuffix(".weight") for key in state if key.endswith(".weight")}


@pytest.mark.parametrize("naming", ["own", "ai-toolkit"])
def test_diffusers_draws_with_the_file_what_we_draw(
    family: Any, theirs: Krea2Pipeline, tmp_path: Path, naming: str
) -> None:
    """Under both names that it reads: its own, and the published ones behind `diffusion_model.`."""
    tensors = flow_checks.save_own(FACTS, lora_of(), tmp_path / "lora.safetensors")
    assert not any(key.endswith(".alpha") for key in tensors)
    if naming == "ai-toolkit":
        names = FACTS.names()
        stems = {names.diffusers[path]: names.original[path] for path in names.original}
        renamed = {f"{stems[key.partition('.lora_')[0]]}.lora_{key[-8]}.weight": v for key, v in tensors.items()}
        save(tmp_path / "lora.safetensors", renamed, {})
    flow_checks.drawn_with(CASE, family, theirs, lora_of(), tmp_path / "lora.safetensors")


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    """Under names written by hand from what it asks a LoRA of Krea 2 for; of its gate and of what mixes the states,
    too."""
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    layers = {
        k.removesuffix(".weight") for k, v in tiny_krea2.models().transformer.state_dict().items() if v.dim() == 2
    }
    layers = {name for name in layers if not name.endswith("table")}
    assert stems == {f"transformer.{name}" for name in layers} and len(stems) == 4 * 8 + 8
    assert {"transformer.text_fusion.projector", "transformer.transformer_blocks.1.attn.to_gate"} <= stems
    flat = kohya.to_kohya(lora_of(), FACTS.names().kohya, dtype=torch.float32)
    assert {k.partition(".")[0] for k in flat} == {f"lora_unet_{name.replace('.', '_')}" for name in native()}
    toolkit = kohya.to_kohya(lora_of(), FACTS.names().original, dtype=torch.float32)
    assert {k.removesuffix(".alpha") for k in toolkit if k.endswith(".alpha")} == {
        f"diffusion_model.{name}" for name in native()
    }
    bare = {key.replace("transformer.", "", 1): value for key, value in form.tensors.items()}
    short = {key.replace("to_out.0", "to_out"): value for key, value in form.tensors.items()}
    other = {f"diffusion_model.{key}": value for key, value in bare.items()}
    for tensors in (form.tensors, flat, toolkit, bare, short, other):
        reading = comfyui.read(tensors, FACTS.base(base))
        assert not reading.faults and reading.changes.keys() == lora_of().keys()


@pytest.mark.parametrize("dress", ["musubi-tuner", "ai-toolkit", "OneTrainer", "bare", "converted"])
def test_a_lora_of_another_trainer_is_read(tmp_path: Path, dress: str) -> None:
    names, tensors, path = FACTS.names(), {}, tmp_path / "theirs.safetensors"
    for name, w in lora_of(alpha=2.0).items():
        if dress == "musubi-tuner":
            flat = names.kohya[name]
            tensors |= {f"{flat}.lora_down.weight": w.down, f"{flat}.lora_up.weight": w.up}
            tensors[f"{flat}.alpha"] = torch.tensor(1.0)
            continue
        stem = names.diffusers[name] if dress in ("OneTrainer", "bare") else names.original[name]
        if dress == "converted":  # by musubi-tuner's convert_lora.py: a dot for every _ of its own names
            stem = f"diffusion_model.{names.kohya[name].removeprefix('lora_unet_').replace('_', '.')}"
        stem = stem.removeprefix("transformer.") if dress == "bare" else stem
        tensors |= {f"{stem}.lora_A.weight": w.down, f"{stem}.lora_B.weight": w.up}
    save(path, tensors, {})
    file, want = read(path), lora_of(alpha=1.0 if dress == "musubi-tuner" else 2.0)
    assert file.family is FACTS and file.weights.keys() == want.keys()
    for name, w in want.items():
        assert torch.allclose(factors.of(file.weights[name]).dense(), factors.of(w).dense()), name
    unasked = inspect(path).reports[0].loads["ComfyUI"] != "yes"
    assert unasked == (dress == "converted")  # of txtfusion.layerwise.blocks.0, which no program asks for


def test_a_lora_of_another_model_with_the_same_names_is_not_taken_for_it(tmp_path: Path) -> None:
    def told(name: str, *stems: str) -> Any:
        tensors = {f"{stem}.lora_A.weight": torch.ones(2, 6144) for stem in stems}
        tensors |= {f"{stem}.lora_B.weight": torch.ones(6144, 2) for stem in stems}
        save(tmp_path / f"{name}.safetensors", tensors, {})
        return family_of(tmp_path / f"{name}.safetensors")

    block = "transformer.transformer_blocks.25.attn"  # FLUX.1 has 19 of the name, SD 3.5 Large narrower ones
    shared = faults(lambda: told("shared", f"{block}.to_q", f"{block}.to_k"))
    assert "this is a LoRA for a diffusion transformer" in shared
    assert told("gate", f"{block}.to_q", f"{block}.to_gate") is FACTS
    assert told("native", "diffusion_model.blocks.0.attn.wq") is FACTS
    anima = flow_checks.lora_of(by_name("anima"), tiny_anima.models().transformer)
    flow_checks.save_own(by_name("anima"), anima, tmp_path / "anima.safetensors")
    assert family_of(tmp_path / "anima.safetensors") is by_name("anima")
    qwen = flow_checks.lora_of(by_name("qwen_image"), tiny_qwen.models().transformer)
    flow_checks.save_own(by_name("qwen_image"), qwen, tmp_path / "qwen.safetensors")
    assert family_of(tmp_path / "qwen.safetensors") is by_name("qwen_image")


def test_a_folder_with_a_stored_base_and_recomputed_blocks_trains(data: Path, tmp_path: Path) -> None:
    """Every layer, the mixing of the states among them."""
    path = flow_checks.trained(tiny_krea2.write_folder(tmp_path / "base"), data, tmp_path, targets='["*"]')
    assert read(path).weights.keys() == lora_of().keys()
