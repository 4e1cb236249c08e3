"""FLUX.3 klein, on a narrow random model: numbers against diffusers' own modules, modular pipeline and converters."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux3_transformer_checkpoint_to_diffusers
from diffusers.modular_pipelines.flux3.before_denoise import _prepare_image_ids
from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoBlocks
from safetensors.torch import load_file, save_file

import flow_checks
import tiny_flux1
import tiny_flux2
import tiny_flux3
import tiny_krea2
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.flux3 import layout
from lora_scripts.families.flux3.check import FILES
from lora_scripts.families.flux3.model import READING, reading_of
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.losses.noise import Draws
from runs import faults

FACTS = by_name("flux3")
LONG = "the weather in Paris is sunny " * 20
"""Of more tokens than a window."""

base, family = flow_checks.fixtures(FACTS, tiny_flux3)


def lora_of(alpha: float = 0.5) -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_flux3.models().transformer, alpha=alpha)


@pytest.fixture(scope="module")
def theirs() -> Any:
    blocks = Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")  # another model's
    made, pipe = tiny_flux3.models(), blocks.init_pipeline()
    parts = {"transformer": made.transformer, "vae": made.vae, "text_encoder": made.text, "tokenizer": made.tokenizer}
    pipe.update_components(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def block(theirs: Any, *names: str) -> Any:
    """One of the pipeline's."""
    found = theirs.blocks
    for name in names:
        found = found.sub_blocks[name]
    return found


def encoded(theirs: Any, caption: str) -> torch.Tensor:
    """Their states of a caption, [1, tokens, width]."""
    with torch.no_grad():
        found: torch.Tensor = block(theirs, "text_encoder")._get_qwen3_vl_prompt_embeds(
            theirs.text_encoder, theirs.tokenizer, caption
        )
    return found


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    states, (height, width) = encoded(theirs, caption), x.shape[2:]
    rope = block(theirs, "denoise", "text2image", "prepare_rope_inputs")
    tokens = theirs.transformer(
        hidden_states=x.flatten(2).transpose(1, 2),
        encoder_hidden_states=states,
        timestep=sigma,
        img_ids=_prepare_image_ids(height, width, 0.5),
        txt_ids=rope._prepare_text_ids(states),
        return_dict=False,
    )[0]
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def latents(theirs: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `flow_checks.latents`, the statistics by hand."""
    encoder, vae = block(theirs, "vae_encoder").sub_blocks["image_conditioning"].sub_blocks["encode"], theirs.vae
    posterior = vae.encode(pixels).latent_dist
    mean, std = (encoder._patchify_latents(own) for own in (posterior.mode(), posterior.std))
    spread = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    return (mean - vae.bn.running_mean.view(1, -1, 1, 1)) / spread, std / spread


CASE = Case(FACTS, tiny_flux3, FILES, layout, answer, latents)


def test_the_rows_of_the_published_widths_are_the_models_parameters() -> None:
    """As diffusers builds it without any argument."""
    with torch.device("meta"):
        model = Flux3Transformer2DModel()
    rows = layout.rows(layout.STANDARD)
    assert {row.hf: row.model_shape for row in rows} == {k: tuple(p.shape) for k, p in model.state_dict().items()}
    assert sum(math.prod(row.shape) for row in rows) == 5_538_458_368
    assert all(model.config[key] == value for key, value in layout.config_of(layout.STANDARD).items())
    assert layout.layout_from(model.config) == layout.STANDARD and len(FACTS.names().written) == 43 * 6


def test_the_template_names_what_stands_beside_the_base() -> None:
    config = flow_checks.template("flux3_klein")
    assert config.text_encoder == (config.base_model,) and config.base_precision == "fp8"
    assert config.size == (1024, 1024)


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Any) -> None:
    """With all that fills a window, too, by the layers up to the last that is read."""
    for caption, windows in ((PROMPTS[0], 1), ("", 1), (LONG, 2)):
        ours, want = family.encode_text([caption]), encoded(theirs, caption)
        assert ours["states"].shape == want.shape == (1, 80 * windows, 128) and ours["lengths"].tolist() == [
            80 * windows
        ]
        assert (ours["states"] - want).abs().max() < 1e-4 * want.abs().max()
        assert ours["states"][0, -1].abs().max() > 0.1  # of what fills it
    assert len(family.encoder._model.layers) == 32 < len(theirs.text_encoder.model.language_model.layers)


def test_a_folder_says_how_a_chat_is_written(theirs: Any, tmp_path: Path) -> None:
    """A published folder whose template is another one would be read wrongly by the usual one."""
    folder = tiny_flux3.write_folder(tmp_path / "base")
    template = folder / "tokenizer" / "chat_template.jinja"
    assert reading_of(folder) == reading_of(tmp_path) == READING
    tokens = tiny_flux3.language()[1]
    tokens.chat_template = tokens.chat_template.replace("assistant", "assistant <think>")
    template.write_text(tokens.chat_template, encoding="utf-8")
    family: Any = load_family(FACTS, folder, OPTIONS)
    encoder, caption = block(theirs, "text_encoder"), PROMPTS[0]
    ours, plain = family.encode_text([caption])["states"], encoded(theirs, caption)
    want = encoder._get_qwen3_vl_prompt_embeds(theirs.text_encoder, tokens, caption)
    assert (ours - want).abs().max() < 1e-4 * want.abs().max() < (ours - plain).abs().max()
    for damage, words in (("{% for %}", "is no chat template"), ("{{- 1 }}", "leaves out what is asked")):
        template.write_text(damage, encoding="utf-8")
        assert words in faults(lambda: load_family(FACTS, folder, OPTIONS))


def test_a_caption_is_short_by_its_own_tokens(family: Any) -> None:
    assert len(family.encoder.tokens.encode(" hello", add_special_tokens=False).ids) == 1
    assert family.encoder.is_short(" hello" * 99) and not family.encoder.is_short(" hello" * 100)


def test_a_caption_that_is_too_long_is_cut_and_told(family: Any, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 8192 tokens; here, so that it does not take long, at fewer than two windows."""
    assert family.encoder.reading.most == 8192
    monkeypatch.setattr(family.encoder, "reading", replace(family.encoder.reading, most=130))
    ours, encoder = family.encode_text([LONG * 2])["states"], block(theirs, "text_encoder")
    told = {"max_sequence_length": 130}
    want = encoder._get_qwen3_vl_prompt_embeds(theirs.text_encoder, theirs.tokenizer, LONG * 2, **told)
    assert ours.shape == want.shape == (1, 130, 128) and (ours - want).abs().max() < 1e-4 * want.abs().max()
    assert family.encoder.excess(LONG * 2) > 0 == family.encoder.excess("hello")


# --- noise levels and the loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 28, 50])
def test_the_levels_are_those_that_the_pipeline_draws_with(family: Any, theirs: Any, steps: int) -> None:
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    want = theirs.scheduler.sigmas[:-1].double()
    for tokens in (16, 4096):
        assert (torch.tensor(family.objective.sigmas.steps(steps, tokens)) - want).abs().max() < 1e-6
    u = torch.tensor([1.0, 1 / steps], dtype=torch.float64)
    first, last = family.objective.sigmas.at(u, 24).tolist()
    assert first == 1.0 and abs(last - 6.93 / steps / (1 + 5.93 / steps)) < 1e-12


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Any) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, 50)


@torch.no_grad()
def test_a_longer_caption_in_the_batch_changes_nothing(family: Any) -> None:
    """Though all that fills a text is read: a text never gets more of it than its own window holds."""
    generator = torch.Generator().manual_seed(1)
    pixels, noise = (
        torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1,
        torch.randn(4, 128, 4, 4, generator=generator),
    )
    u = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    draws = Draws(u, noise, torch.zeros(4, 128, 4, 4))
    captions = [PROMPTS[0], LONG, f"{LONG} hello", "hello"]
    batch = flow_checks.batch_of(family, pixels, captions)
    together = family.losses(batch, family.objective, draws)
    for n, caption in enumerate(captions):
        one = flow_checks.batch_of(family, pixels[n : n + 1], [caption])
        own = Draws(u[n : n + 1], draws.noise[n : n + 1], draws.posterior[n : n + 1])
        alone = family.losses(one, family.objective, own)
        assert abs(together[n].item() - alone.item()) < 1e-5 * alone.item()


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Any, cfg: float) -> None:
    """With a negative prompt of more windows than the prompt."""

    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        theirs.update_components(guider=theirs.guider.__class__(guidance_scale=cfg))
        return theirs(prompt=PROMPTS[0], negative_prompt=LONG, latents=noise, output="images", **size)[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative=LONG)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "jumps"), [("", False), ("model.diffusion_model.", False), ("", True)])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str, jumps: bool) -> None:
    """So is a distilled one, to which LoRAs can be added."""
    path = tiny_flux3.write_base(tmp_path / "base.safetensors", prefix=prefix, jumps=jumps)
    own, convert = tiny_flux3.models(jumps=jumps).transformer, convert_flux3_transformer_checkpoint_to_diffusers
    if jumps:
        flow_checks.same(FILES.load(path, torch.float32).state_dict(), own.state_dict())
    else:
        flow_checks.one_file(CASE, path, prefix, own, convert)


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_flux3.beside) == []


def test_a_file_in_fp8_with_scales_is_read(base: Path, tmp_path: Path) -> None:
    tensors, key = load_file(base), "content_mode_blocks.image.0.q_proj.weight"
    scale = tensors[key].abs().max() / 448
    tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
    path = tmp_path / "fp8.safetensors"
    save_file({**tensors, key.replace(".weight", ".weight_scale"): scale}, path)
    FACTS.check(path, False)
    state = FILES.load(path, torch.float32).state_dict()
    assert torch.equal(state["mode_blocks.image.0.attn.to_q.weight"], tensors[key].float() * scale)


def test_the_groups_hold_the_layers_that_they_name() -> None:
    leaves = [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")] + ["ff.linear_in", "ff.linear_out"]
    starts = {"image": ["mode_blocks.image.0"], "text": ["txt_mode_blocks.0"]}
    starts["single"] = [f"single_transformer_blocks.{n}" for n in (0, 1)]

    def inside(group: str) -> set[str]:
        return {path.removeprefix("transformer.") for path in lora_of() if FACTS.groups[group](path)}

    for group, blocks in starts.items():
        assert inside(group) == {f"{at}.{leaf}" for at in blocks for leaf in leaves}
    trained = [at for blocks in starts.values() for at in blocks]
    for group, own in (("attention", leaves[:4]), ("feed_forward", leaves[4:])):
        assert inside(group) == {f"{at}.{leaf}" for at in trained for leaf in own}


def test_the_layers_of_reference_pictures_are_not_trained_and_stay_in_ram(base: Path, family: Any) -> None:
    """A LoRA on them can be put on all the same: others' files have them."""
    assert not any("image_cond" in path for path in family.trainable()) and len(family.trainable()) == 4 * 6
    assert any("image_cond" in path for path in lora_of())
    elsewhere = replace(OPTIONS, device=torch.device("meta"), **tiny_flux3.beside(base.parent))
    placed: Any = load_family(FACTS, base, elsewhere)
    at_home = {name for name, weight in placed.transformer.named_parameters() if not weight.is_meta}
    assert at_home == {name for name in dict(family.transformer.named_parameters()) if ".image_cond." in name}
    assert len(at_home) == 2 + 1 + 8


def test_relatives_and_parts_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    check_text = FACTS.check_text
    assert check_text is not None
    tensors = load_file(base)
    jumps = tiny_flux3.write_base(tmp_path / "jumps" / "base.safetensors", jumps=True)
    folder = tiny_flux3.write_folder(tmp_path / "folder", jumps=True)
    for path in (jumps, folder):
        assert "this is a FLUX.3 klein distilled to few steps" in faults(lambda path=path: find(path))  # type: ignore[misc]
    bare = tmp_path / "bare.safetensors"
    save_file({k: v.contiguous() for k, v in tiny_flux3.models().transformer.state_dict().items()}, bare)
    assert "this is only a FLUX.3 klein transformer, in diffusers' layout" in faults(lambda: find(bare))
    films = {key.replace(".image.", ".video."): value for key, value in tensors.items()}
    save_file(films, tmp_path / "films.safetensors")
    assert "this is a FLUX.3 that draws no pictures" in faults(lambda: find(tmp_path / "films.safetensors"))
    klein, krea = (made.write_base(tmp_path / made.__name__ / "b.safetensors") for made in (tiny_flux2, tiny_krea2))
    assert identify(klein).words == "a FLUX.2 klein checkpoint" and identify(krea).words == "a Krea 2 checkpoint"
    for damage, words in (("single_blocks.1.mlp_in.weight", ""), ("odd", "odd")):
        changed = {key: value for key, value in tensors.items() if key != damage}
        changed |= {words: torch.zeros(2)} if words else {}
        save_file(changed, tmp_path / "damaged.safetensors")
        assert damage in faults(lambda: FACTS.check(tmp_path / "damaged.safetensors", False))
    save_file({**tensors, "repa_projectors.0.weight": torch.zeros(2, 2)}, tmp_path / "repa.safetensors")
    FACTS.check(tmp_path / "repa.safetensors", False)  # of its training, and read by nobody
    assert "(such as qwen3vl_4b_bf16.safetensors)" in faults(lambda: check_text(base, ()))
    assert "add vae: the file flux2-vae.safetensors" in faults(lambda: FACTS.check(base, True))
    wide = tiny_flux3.models()._replace(text=tiny_flux3.language(layers=2, width=24)[0])
    short = tiny_flux3.models()._replace(text=tiny_flux3.language(layers=31)[0])
    for made, words in ((wide, "gives states of width 24, the base reads 16"), (short, "has 31 layers")):
        path = tiny_flux3.write_text(tmp_path / words[:5] / "qwen.safetensors", made)
        assert words in faults(lambda path=path: check_text(base, [path]))  # type: ignore[misc]
    qwen3: Any = tiny_flux2.beside(klein.parent)["text_encoder"]
    assert "this is no Qwen3-VL text encoder" in faults(lambda: check_text(base, qwen3))
    of_krea: Any = tiny_krea2.beside(krea.parent)["vae"]
    assert "not a VAE of FLUX.3 klein" in faults(lambda: FACTS.check_vae(of_krea))


# --- LoRA files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", ["own", "diffusers"])
def test_diffusers_draws_with_the_file_what_we_draw(family: Any, theirs: Any, tmp_path: Path, naming: str) -> None:
    """Under both names that it reads: the published ones behind `diffusion_model.`, and its own."""
    path = tmp_path / "lora.safetensors"
    tensors = flow_checks.save_own(FACTS, lora_of(), path)
    assert not any(key.endswith(".alpha") for key in tensors)  # diffusers stops at one
    if naming == "diffusers":
        own = {stem: path for path, stem in FACTS.names().diffusers.items()}
        save(path, {f"{own[key.partition('.lora_')[0]]}.lora_{key[-8]}.weight": v for key, v in tensors.items()}, {})
    flow_checks.drawn_with(CASE, family, theirs, lora_of(), path)


def test_our_file_has_the_names_of_the_published_layout(base: Path) -> None:
    """Those of the file itself, and flat; as ComfyUI, which is not asked, asks for the layers of a model whose names it
    has."""
    published = {key.removesuffix(".weight") for key, value in load_file(base).items() if value.dim() == 2}
    wanted = {name for name in published if "blocks." in name}
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert stems == {f"diffusion_model.{name}" for name in wanted} and len(stems) == 5 * 6
    assert {"diffusion_model.content_mode_blocks.image.0.q_proj", "diffusion_model.single_blocks.1.mlp_in"} <= stems
    flat = kohya.to_kohya(lora_of(), FACTS.names().kohya, dtype=torch.float32)
    assert {key.partition(".")[0] for key in flat} == {f"lora_unet_{name.replace('.', '_')}" for name in wanted}
    for tensors in (form.tensors, flat):
        reading = comfyui.read(tensors, FACTS.base(base))
        assert not reading.faults and reading.changes.keys() == lora_of().keys()


def test_what_reads_a_file_is_told_of_what_was_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow_checks.save_own(FACTS, lora_of(), tmp_path / "lora.safetensors")
    for naming, told in (("diffusers", "read by diffusers"), ("kohya", "no program whose rules are stated here")):
        words = (
            "convert",
            tmp_path / "lora.safetensors",
            "--to",
            naming,
            "--output",
            tmp_path / f"{naming}.safetensors",
        )
        assert main([str(word) for word in words]) == 0
        out = capsys.readouterr().out
        assert told in out and "ComfyUI" not in out


@pytest.mark.parametrize("dress", ["published", "diffusers", "bare", "kohya"])
def test_a_lora_in_another_dress_is_read(tmp_path: Path, dress: str) -> None:
    names, tensors, path = FACTS.names(), {}, tmp_path / "theirs.safetensors"
    for name, w in lora_of(alpha=2.0).items():
        bare = name.removeprefix("transformer.")
        stem = {"published": names.diffusers, "kohya": names.kohya}.get(dress, {name: bare})[name]
        stem = name if dress == "diffusers" else stem
        tensors |= {f"{stem}.lora_A.weight": w.down, f"{stem}.lora_B.weight": w.up}
    save(path, tensors, {})
    file = read(path)
    assert file.family is FACTS and file.weights.keys() == lora_of().keys()
    for name, w in lora_of(alpha=2.0).items():
        assert torch.allclose(factors.of(file.weights[name]).dense(), factors.of(w).dense()), name


def test_a_lora_of_another_model_with_the_same_names_is_not_taken_for_it(tmp_path: Path) -> None:
    def told(*stems: str) -> Any:
        tensors = {f"{stem}.lora_{one}.weight": torch.ones(2, 2) for stem in stems for one in "AB"}
        save(tmp_path / "told.safetensors", tensors, {})
        return family_of(tmp_path / "told.safetensors")

    single = "transformer.single_transformer_blocks.3.attn"
    assert told(f"{single}.to_q", f"{single}.to_k") is by_name("flux1")
    assert told(f"{single}.to_q", f"{single}.to_out.0") is FACTS
    assert told("diffusion_model.single_blocks.3.q_proj") is FACTS
    for name, made in (("flux1", tiny_flux1), ("flux2", tiny_flux2), ("krea2", tiny_krea2)):
        facts, path = by_name(name), tmp_path / f"{name}.safetensors"
        flow_checks.save_own(facts, flow_checks.lora_of(facts, made.models().transformer), path)
        assert family_of(path) is facts
        assert f"this LoRA is for {facts.words}, the base model is FLUX.3 klein" in faults(
            lambda path=path: read(path, FACTS)  # type: ignore[misc]
        )
    flow_checks.save_own(FACTS, lora_of(), tmp_path / "own.safetensors")
    told_wrong = faults(lambda: read(tmp_path / "own.safetensors", by_name("flux2")))
    assert "this LoRA is for FLUX.3 klein, the base model is FLUX.2 klein" in told_wrong


def test_a_folder_with_a_stored_base_and_recomputed_blocks_trains(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It tells that captions are shorter than those that the base was made for."""
    path = flow_checks.trained(tiny_flux3.write_folder(tmp_path / "base"), data, tmp_path)
    told = capsys.readouterr()
    assert "captions say less than those that the base was made for" in told.out + told.err
    assert len(read(path).weights) == 4 * 6
