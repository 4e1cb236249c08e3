"""Anima, on a narrow random model: numbers against diffusers' own modules, pipeline, scheduler and converters."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AnimaTextConditioner,
    ClassifierFreeGuidance,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.loaders import AnimaLoraLoaderMixin
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers
from diffusers.models.transformers import transformer_cosmos
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.modular_pipelines.anima.modular_blocks_anima import AnimaAutoBlocks
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import flow_checks
import tiny_anima
import tiny_flow
import tiny_qwen
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.anima import layout
from lora_scripts.families.anima.check import FILES
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import read, save
from runs import faults

FACTS = by_name("anima")

base, family = flow_checks.fixtures(FACTS, tiny_anima)


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    """The same model in diffusers' hands, with the one function of torchvision's that it wants."""
    nearest = SimpleNamespace(resize=lambda x, size, interpolation: F.interpolate(x, size, mode=interpolation))
    with pytest.MonkeyPatch.context() as patch:
        stand_in = SimpleNamespace(InterpolationMode=SimpleNamespace(NEAREST="nearest"), functional=nearest)
        patch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)
        made = tiny_anima.models()
        pipe = AnimaAutoBlocks().init_pipeline()
        pipe.update_components(
            transformer=made.transformer,
            text_conditioner=made.adapter,
            vae=made.vae,
            text_encoder=made.text.model,
            tokenizer=made.tokenizer,
            t5_tokenizer=made.t5,
            scheduler=tiny_anima.scheduler(),
        )
        pipe.set_progress_bar_config(disable=True)
        yield pipe


@torch.no_grad()
def states_of(theirs: Any, prompts: Sequence[str]) -> torch.Tensor:
    """As their steps encode prompts."""
    made = AnimaTextEncoderStep.encode_prompt(theirs, list(prompts), prepare_unconditional_embeds=False)
    states: torch.Tensor = theirs.text_conditioner(
        source_hidden_states=made["qwen_prompt_embeds"],
        target_input_ids=made["t5_input_ids"],
        target_attention_mask=made["t5_attention_mask"],
        source_attention_mask=made["qwen_attention_mask"],
    )
    return states


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    return theirs.transformer(
        hidden_states=x.unsqueeze(2),
        timestep=sigma,
        encoder_hidden_states=states_of(theirs, [caption]),
        padding_mask=torch.zeros(1, 1, x.shape[2] * 8, x.shape[3] * 8),
        return_dict=False,
    )[0].squeeze(2)


CASE = Case(FACTS, tiny_anima, FILES, layout, answer, flow_checks.film_latents)


def test_the_rows_of_the_published_widths_are_the_models_parameters() -> None:
    """Arguments of its published config; the adapter as diffusers builds it without any. A published file of both in
    bf16 has 4,182,219,646 bytes: these, and a header of 82 kB."""
    published = {"num_attention_heads": 16, "rope_scale": (1.0, 4.0, 4.0), "extra_pos_embed_type": None}
    with torch.device("meta"):
        model, adapter = CosmosTransformer3DModel(**published), AnimaTextConditioner()
    rows, adapter_rows = layout.rows(layout.STANDARD), layout.adapter_rows(layout.ADAPTER_STANDARD)
    assert {r.hf: r.shape for r in rows} == {k: tuple(p.shape) for k, p in model.state_dict().items()}
    assert all(model.config[key] == value for key, value in layout.config_of(layout.STANDARD).items())
    theirs = {k: tuple(p.shape) for k, p in adapter.state_dict().items()}
    assert {r.hf: r.shape for r in adapter_rows} == theirs
    assert 0 < 4_182_219_646 - 2 * sum(math.prod(row.shape) for row in [*rows, *adapter_rows]) < 100_000
    own = {k: v for k, v in layout.adapter_config(layout.ADAPTER_STANDARD).items() if k != "min_sequence_length"}
    assert all(adapter.config[key] == value for key, value in own.items())


def test_the_template_names_what_stands_beside_the_base() -> None:
    config = flow_checks.template("anima")
    assert config.text_encoder == (config.base_model,) and config.size == (1024, 1024)


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Any) -> None:
    """As many states as T5 has tokens; zeros behind them. Of no text the adapter sees nothing."""
    for prompts in (PROMPTS, [""]):
        ours, want = family.encode_text(prompts), states_of(theirs, prompts)
        width = ours["states"].shape[1]
        assert (ours["states"] - want[:, :width]).abs().max() < 1e-4 * want.abs().max()
        assert not want[:, width:].any() and want.shape[1] == 512
        tokens = [len(theirs.t5_tokenizer(prompt)["input_ids"]) for prompt in prompts]
        assert ours["lengths"].tolist() == tokens


def test_a_caption_that_is_too_long_is_cut_and_told(family: Any, theirs: Any) -> None:
    long = "hello how are you " * 160
    (ours,), (want,) = family.encode_text([long])["states"], states_of(theirs, [long])
    assert ours.shape == want.shape == (512, 32) and (ours - want).abs().max() < 1e-4 * want.abs().max()
    counts = [len(tok(long)["input_ids"]) for tok in (theirs.tokenizer, theirs.t5_tokenizer)]
    assert family.encoder.excess(long) == max(counts) - 512 > 0 == family.encoder.excess("hello")


def test_the_adapter_and_its_tokenizer_count_in_what_captions_are_kept_under(base: Path, tmp_path: Path) -> None:
    def fingerprint(**changes: Any) -> str:
        made: Any = load_family(FACTS, base, replace(OPTIONS, **{**tiny_anima.beside(base.parent), **changes}))
        digest: str = made.fingerprint("text")
        return digest

    shutil.copytree(base.parent / "text", tmp_path / "text")
    text = tmp_path / "text" / "qwen_3_06b_base.safetensors"
    assert fingerprint() == fingerprint(text_encoder=[text])
    t5 = tmp_path / "text" / "t5_tokenizer.json"
    t5.write_text(t5.read_text("utf-8").replace("#", "+"), encoding="utf-8")
    assert fingerprint() != fingerprint(text_encoder=[text])


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Any) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, steps=20)


def test_a_neighbour_with_a_longer_caption_changes_nothing(family: Any) -> None:
    flow_checks.neighbour(family)


@pytest.mark.parametrize("shift", [3.0, 1.0])
def test_the_levels_are_those_of_the_published_sampler(tmp_path: Path, base: Path, family: Any, shift: float) -> None:
    """A file is taken for the published one; a folder says it itself. The first and the last by value."""
    from lora_scripts.families.flow.levels import sigmas_of
    from lora_scripts.losses.flow import Sigmas

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.save_pretrained(tmp_path / "scheduler")
    sigmas = sigmas_of(tmp_path, Sigmas(layout.SAMPLER_SHIFT))
    u = torch.tensor([1.0, 1 / 1000], dtype=torch.float64)
    assert (sigmas.at(u, 16) - scheduler.sigmas[[0, 999]]).abs().max() < 1e-6
    assert family.objective.sigmas == sigmas_of(base, Sigmas(layout.SAMPLER_SHIFT)) == Sigmas(3.0)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cfg", "negative"), [(1.0, ""), (4.0, "hello"), (4.0, "")])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Any, cfg: float, negative: str) -> None:
    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        theirs.update_components(guider=ClassifierFreeGuidance(guidance_scale=cfg))
        more = {"negative_prompt": negative, "output": "images", **size}
        return theirs(prompt=PROMPTS[0], latents=noise.unsqueeze(2), **more)[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative=negative)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "net.", "model.diffusion_model.", "model.diffusion_model.net."])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str) -> None:
    def convert(tensors: dict[str, torch.Tensor]) -> Any:
        return convert_cosmos_transformer_checkpoint_to_diffusers({f"net.{key}": v for key, v in tensors.items()})

    path = tiny_anima.write_base(tmp_path / "base.safetensors", prefix=prefix)
    flow_checks.one_file(CASE, path, prefix, tiny_anima.models().transformer, convert, aside=layout.ADAPTER)


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_anima.beside) == []


def test_what_published_files_hold_besides_is_left_unread(base: Path, tmp_path: Path) -> None:
    more = {"net.accum_iteration": torch.zeros(1), "net.pos_embedder.seq": torch.zeros(4)}
    save_file({**load_file(base), **more}, tmp_path / "more.safetensors")
    FACTS.check(tmp_path / "more.safetensors", False)
    assert all(FACTS.unread(key, False) for key in more) and not FACTS.unread("net.llm_adapter.norm.weight", False)


def test_what_is_missing_is_named_with_what_brings_it(base: Path, tmp_path: Path) -> None:
    check_text, tensors = FACTS.check_text, load_file(base)
    assert check_text is not None
    assert "(such as qwen_3_06b_base.safetensors)" in faults(lambda: check_text(base, ()))
    assert "add vae: the file qwen_image_vae.safetensors" in faults(lambda: FACTS.check(base, True))
    alone = tiny_anima.write_text(tmp_path / "alone" / "qwen.safetensors", tiny_anima.models())
    (alone.parent / "t5_tokenizer.json").unlink()
    assert "there is no t5_tokenizer.json beside this text encoder" in faults(lambda: check_text(base, [alone]))
    large = tiny_anima.t5_tokenizer(more=100).backend_tokenizer
    large.save(str(alone.parent / "t5_tokenizer.json"))
    assert "tokens, the adapter knows 128" in faults(lambda: check_text(base, [alone]))
    cut = {key: value for key, value in tensors.items() if "llm_adapter.blocks.1.cross_attn.q_proj" not in key}
    save_file(cut, tmp_path / "cut.safetensors")
    told = faults(lambda: FACTS.check(tmp_path / "cut.safetensors", False))
    assert "llm_adapter.blocks.1.cross_attn.q_proj.weight" in told
    folder = tiny_anima.write_folder(tmp_path / "folder")
    config = folder / "text_conditioner" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "num_layers": 3}), encoding="utf-8")
    assert "tensors of the adapter are missing" in faults(lambda: FACTS.check(folder, True))


def test_relatives_and_parts_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    cosmos = {key: value for key, value in load_file(base).items() if "llm_adapter" not in key}
    save_file(cosmos, tmp_path / "cosmos.safetensors")
    assert "this is a Cosmos-Predict2 checkpoint" in faults(lambda: find(tmp_path / "cosmos.safetensors"))
    folder = tiny_anima.write_folder(tmp_path / "folder")
    shutil.rmtree(folder / "text_conditioner")
    assert identify(folder).words == "a Cosmos-Predict2 checkpoint"
    check_text = FACTS.check_text
    assert check_text is not None
    wide = tiny_flow.language(width=40)
    other = tiny_anima.write_text(tmp_path / "wide" / "qwen.safetensors", tiny_anima.models()._replace(text=wide[0]))
    assert "gives states of width 40, the base reads 24" in faults(lambda: check_text(base, [other]))
    vl = tiny_qwen.write_text(tmp_path / "vl" / "qwen.safetensors", tiny_qwen.models())
    assert "this is no Qwen3 text encoder" in faults(lambda: check_text(base, [vl]))
    tiny_flow.autoencoder().save_pretrained(tmp_path / "vae")
    assert "a VAE of pictures alone, not the VAE of Anima" in faults(lambda: FACTS.check_vae(tmp_path / "vae"))


# --- LoRA files -------------------------------------------------------------------------------------------------------


def lora_of(alpha: float = 0.5) -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_anima.models().transformer, alpha=alpha)


def test_diffusers_draws_with_the_file_what_we_draw(family: Any, theirs: Any, tmp_path: Path) -> None:
    flow_checks.save_own(FACTS, lora_of(), tmp_path / "lora.safetensors")
    flow_checks.drawn_with(CASE, family, theirs, lora_of(), tmp_path / "lora.safetensors")


def comfy_names() -> set[str]:
    """Stems, written by hand from what ComfyUI asks a LoRA of Anima for: behind one word, or flat behind another."""
    block = [f"adaln_modulation_{part}.{n}" for part in ("self_attn", "cross_attn", "mlp") for n in (1, 2)]
    leaves = ("q_proj", "k_proj", "v_proj", "output_proj")
    block += [f"{part}.{leaf}" for part in ("self_attn", "cross_attn") for leaf in leaves]
    names = [f"blocks.{n}.{name}" for n in (0, 1) for name in (*block, "mlp.layer1", "mlp.layer2")]
    names += ["x_embedder.proj.1", "t_embedder.1.linear_1", "t_embedder.1.linear_2", "final_layer.linear"]
    return {*names, "final_layer.adaln_modulation.1", "final_layer.adaln_modulation.2"}


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert stems == {f"diffusion_model.{name}" for name in comfy_names()}
    assert not any(key.endswith(".alpha") for key in form.tensors)
    flat = kohya.to_kohya(lora_of(), FACTS.names().kohya, dtype=torch.float32)
    assert {k.partition(".")[0] for k in flat} == {f"lora_unet_{name.replace('.', '_')}" for name in comfy_names()}
    for tensors in (form.tensors, flat):
        reading = comfyui.read(tensors, FACTS.base(base))
        assert not reading.faults and reading.changes.keys() == lora_of().keys()


@pytest.mark.parametrize("dress", ["kohya", "diffusers"])
def test_a_lora_of_another_trainer_is_read(tmp_path: Path, dress: str) -> None:
    """As sd-scripts and diffusers write them."""
    tensors, names, path = {}, FACTS.names(), tmp_path / "theirs.safetensors"
    for name, w in lora_of(alpha=2.0).items():
        if dress == "kohya":
            stem = names.kohya[name]
            tensors |= {f"{stem}.lora_down.weight": w.down, f"{stem}.lora_up.weight": w.up}
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
        else:
            tensors |= {f"{name}.lora_A.weight": w.down, f"{name}.lora_B.weight": w.up}
    save(path, tensors, {})
    file, want = read(path), lora_of(alpha=1.0 if dress == "kohya" else 2.0)
    assert file.family is FACTS and file.weights.keys() == want.keys()
    for name, w in want.items():
        assert torch.allclose(factors.of(file.weights[name]).dense(), factors.of(w).dense()), name
    if dress == "diffusers":  # as its own reader takes them
        assert AnimaLoraLoaderMixin.lora_state_dict(str(path)).keys() == tensors.keys()


def test_a_folder_with_a_stored_base_and_recomputed_blocks_trains(data: Path, tmp_path: Path) -> None:
    flow_checks.trained(tiny_anima.write_folder(tmp_path / "base"), data, tmp_path)


def test_a_text_encoder_that_does_not_fit_comes_block_by_block(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_checks.block_by_block(family, monkeypatch)
