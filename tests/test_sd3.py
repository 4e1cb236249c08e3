"""Stable Diffusion 3.5, on a narrow random model: numbers against diffusers' own modules, pipeline, scheduler and
converters."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import flow_checks
import tiny
import tiny_flow
import tiny_flux1
import tiny_sd3
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.base import Sampling
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.flow import autoencoder
from lora_scripts.families.sd3 import layout
from lora_scripts.families.sd3.check import FILES
from lora_scripts.families.table import by_name, identify, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.run.first_config import new_config
from runs import faults

FACTS = by_name("sd3")
STEPS = 1000
"""Of the scheduler's own table."""

base, family = flow_checks.fixtures(FACTS, tiny_sd3)


@pytest.fixture(scope="module")
def theirs() -> StableDiffusion3Pipeline:
    return pipeline_of(tiny_sd3.models())


def pipeline_of(made: tiny_sd3.Models) -> StableDiffusion3Pipeline:
    """The same model in diffusers' hands."""
    tokenizers = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_g_tokenizer(), "tokenizer_3": made.tokenizer}
    encoders = {"text_encoder": made.clip_l, "text_encoder_2": made.clip_g, "text_encoder_3": made.t5}
    pipe = StableDiffusion3Pipeline(
        transformer=made.transformer, vae=made.vae, scheduler=tiny_sd3.scheduler(), **encoders, **tokenizers
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip_g_tokenizer() -> CLIPTokenizer:
    """As published: it fills up with an exclamation mark."""
    from lora_scripts.families.clip.tokenizer import _vocabulary

    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token="!")


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    states, _, pooled, _ = theirs.encode_prompt(caption, None, None, do_classifier_free_guidance=False)
    told = {"encoder_hidden_states": states, "pooled_projections": pooled, "return_dict": False}
    out: torch.Tensor = theirs.transformer(hidden_states=x, timestep=sigma * 1000, **told)[0]
    return out


CASE = Case(FACTS, tiny_sd3, FILES, layout, answer)


def lora_of() -> dict[str, LoraWeights]:
    """Of all layers that are trained."""
    return {path: w for path, w in flow_checks.in_blocks(every()).items() if path not in (LAST, UNREAD)}


def every() -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_sd3.models().transformer)


LAST = "transformer.transformer_blocks.2.norm1_context.linear"
"""The layer whose halves stand the other way round in the published file."""
UNREAD = "transformer.transformer_blocks.2.attn.add_q_proj"
"""What it finds nobody reads."""


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("caption", [*PROMPTS, "", "hello how are you, " * 100])
def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Any, caption: str) -> None:
    """77 tokens of both CLIPs side by side, filled up with zeros, 256 of T5, and both pooled states; longer ones are
    cut, and told."""
    ours = family.encode_text([caption, "hello"])
    states, _, pooled, _ = theirs.encode_prompt([caption, "hello"], None, None, do_classifier_free_guidance=False)
    assert ours["states"].shape == (2, 77 + 256, 72) and ours["pooled"].shape == (2, 64)
    assert (ours["states"] - states).abs().max() < 1e-5 and (ours["pooled"] - pooled).abs().max() < 1e-5
    assert (family.encoder.excess(caption) > 0) == (len(theirs.tokenizer_3(caption).input_ids) > 256)


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_levels_are_theirs(family: Any, theirs: Any, tmp_path: Path, kind: str) -> None:
    """Those that training meets, from the first to the last; and those of a sampler, whose last is the same for any
    number of steps."""
    scheduler, sigmas = tiny_sd3.scheduler(), family.objective.sigmas
    if kind == "folder":
        from lora_scripts.families.sd3.model import sigmas as sigmas_of

        sigmas = sigmas_of(tiny_sd3.write_folder(tmp_path / "folder"))
    u = torch.linspace(1, 1 / STEPS, STEPS, dtype=torch.float64)
    assert (sigmas.at(u, 4096) - scheduler.sigmas).abs().max() < 1e-6
    assert sigmas.at(u[[0, -1]], 1).tolist() == pytest.approx([1.0, 0.0029940120])
    for steps in (1, 4, 28):
        scheduler.set_timesteps(steps)
        ours = torch.tensor(sigmas.steps(steps, 4096))
        assert (ours - scheduler.sigmas[:-1]).abs().max() < 1e-6 and ours[0] == 1.0
        assert steps == 1 or ours[-1].item() == pytest.approx(0.0089287, abs=1e-6)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Any) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, STEPS)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 4.5])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Any, cfg: float) -> None:
    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        told = {"guidance_scale": cfg, "negative_prompt": "hello, a fox"}
        return theirs(PROMPTS[0], latents=noise, **size, **told).images[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative="hello, a fox")


def test_a_picture_without_places_is_refused(family: Any) -> None:
    """The table of the narrow model has 12 tokens a side."""
    told = faults(lambda: family.generate("hello", 1, Sampling(steps=1, size=(64, 208))))
    assert "a picture of 64 x 208: this base knows places up to 192 px a side" in told


# --- files ------------------------------------------------------------------------------------------------------------

COUNTS = {"large": 8_056_627_520, "medium": 2_243_171_520, "first": 2_028_328_000}
"""Numbers of the published transformers."""


@pytest.mark.parametrize("name", COUNTS)
def test_the_rows_of_the_published_widths_are_diffusers_parameters(name: str) -> None:
    own = {"large": layout.LARGE, "medium": layout.MEDIUM, "first": layout.FIRST}[name]
    with torch.device("meta"):
        built = SD3Transformer2DModel(**layout.config_of(own))
    shapes = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    assert {row.hf: row.model_shape for row in layout.rows(own)} == shapes
    assert layout.layout_from(dict(built.config)) == own
    assert sum(p.numel() for p in built.parameters()) == COUNTS[name]


ASIDE = ("first_stage_model.", "text_encoders.")
KINDS: dict[str, dict[str, Any]] = {
    "3.5 Medium": {"dual": (0, 1)},
    "3.5 Large": {"dual": ()},
    "3 Medium": {"dual": (), "normed": False},
}


@pytest.mark.parametrize(("name", "prefix"), [*((name, "model.diffusion_model.") for name in KINDS), ("3.5 Large", "")])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, name: str, prefix: str) -> None:
    path = tiny_sd3.write_base(tmp_path / "base.safetensors", prefix=prefix, **KINDS[name])
    convert = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers
    flow_checks.one_file(CASE, path, prefix, tiny_sd3.models(**KINDS[name]).transformer, convert, ASIDE)


def test_one_file_with_everything_is_what_the_separate_files_are(family: Any, tmp_path: Path) -> None:
    """Its VAE, its text encoders; and weights in fp8, as people have T5 there, and with a scale beside them."""
    path = tiny_sd3.write_base(tmp_path / "base.safetensors", whole=True)
    FACTS.check(path, True)
    whole: Any = load_family(FACTS, path, OPTIONS)
    for part in ("transformer", "vae"):
        one, two = (of.transformer if part == "transformer" else of.coder.vae for of in (whole, family))
        flow_checks.same(one.state_dict(), two.state_dict())
    flow_checks.same(whole.coder.vae.state_dict(), tiny_sd3.models().vae.state_dict())
    flow_checks.same(whole.encode_text(PROMPTS), family.encode_text(PROMPTS))
    tensors, key = load_file(path), f"{tiny_sd3.INSIDE['t5xxl']}encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[key] = tensors[key].to(torch.float8_e4m3fn)
    last = "model.diffusion_model.joint_blocks.2.context_block.adaLN_modulation.1"
    qkv = "model.diffusion_model.joint_blocks.0.x_block.attn2.qkv"
    wanted = []
    for stem in (qkv, last):
        scale = tensors[f"{stem}.weight"].abs().max() / 448
        tensors[f"{stem}.weight"] = (tensors[f"{stem}.weight"] / scale).to(torch.float8_e4m3fn)
        tensors[f"{stem}.scale_weight"] = scale
        wanted.append(tensors[f"{stem}.weight"].float() * scale)
    save_file({**tensors, f"{tiny_sd3.INSIDE['t5xxl']}scaled_fp8": torch.zeros(2)}, path)
    FACTS.check(path, True)
    small: Any = load_family(FACTS, path, OPTIONS)
    made = small.transformer.state_dict()
    parts = [made[f"transformer_blocks.0.attn2.to_{leaf}.weight"] for leaf in "qkv"]
    assert torch.equal(torch.cat(parts), wanted[0])
    assert torch.equal(made["transformer_blocks.2.norm1_context.linear.weight"], torch.cat(wanted[1].chunk(2)[::-1]))
    small.encode_text(["hello"])
    held = small.encoder._model.state_dict()[key.removeprefix(tiny_sd3.INSIDE["t5xxl"])]
    assert torch.equal(held, tensors[key].float())
    # What is named comes before what is inside.
    tiny_sd3.write_texts(tmp_path / "text", tiny_sd3.models(1))
    given = [tmp_path / "text" / "clip_l.safetensors"]
    other: Any = load_family(FACTS, path, replace(OPTIONS, text_encoder=given))
    change = (other.encode_text(["hello"])["states"] - small.encode_text(["hello"])["states"]).abs()
    assert change[:, :77, :24].max() > 0.1 and not change[:, :77, 24:].any() and not change[:, 77:].any()


def test_a_projection_that_is_not_read_may_have_a_scale(family: Any, base: Path, tmp_path: Path) -> None:
    """CLIP-L's, with every other matrix of it in fp8_scaled; of CLIP-G it is read."""
    tiny_sd3.write_texts(tmp_path / "text", tiny_sd3.models())
    given = sorted((tmp_path / "text").glob("*.safetensors"))
    small = next(path for path in given if path.name.startswith("clip_l"))
    tensors = load_file(small)
    for key in [key for key, tensor in tensors.items() if tensor.ndim == 2 and "embeddings" not in key]:
        scale = tensors[key].abs().max() / 448
        tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
        tensors[key.replace(".weight", ".weight_scale")] = scale
    assert "text_projection.weight_scale" in tensors
    save_file(tensors, small)
    rounded = load_family(FACTS, base, replace(OPTIONS, text_encoder=given)).encode_text(["hello"])
    whole = family.encode_text(["hello"])
    for name in ("states", "pooled"):
        off = (rounded[name] - whole[name]).norm() / whole[name].norm()
        assert 1e-4 < off < 0.05
    save_file({**tensors, "text_projection.bias": torch.zeros(24)}, small)
    assert "1 unknown tensors, first text_projection.bias" in faults(
        lambda: load_family(FACTS, base, replace(OPTIONS, text_encoder=given))
    )


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    """So that merging adds to the right rows, also of the layer that holds q, k and v."""
    assert flow_checks.misplaced(FACTS, base, tiny_sd3.beside) == []


def test_files_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    path, tensors = tmp_path / "file.safetensors", load_file(base)
    other = tiny_sd3.write_base(tmp_path / "relative.safetensors", channels=32)
    assert identify(other).words == "a relative of Stable Diffusion 3 with other latents"
    folder = tiny_sd3.write_folder(tmp_path / "folder", channels=32)
    assert identify(folder).words == "a relative of Stable Diffusion 3 with other latents"
    save_file({k: v.contiguous() for k, v in tiny_sd3.models().transformer.state_dict().items()}, path)
    assert identify(path).words == "only a Stable Diffusion 3 transformer, in diffusers' layout"
    assert identify(tiny_flux1.write_base(tmp_path / "flux1.safetensors")) is by_name("flux1").checkpoint
    key = "model.diffusion_model.joint_blocks.2.x_block.mlp.fc1.weight"
    more = {"model.diffusion_model.more": torch.zeros(1)}
    save_file({**{k: v for k, v in tensors.items() if k != key}, **more}, path)
    told = faults(lambda: FACTS.check(path, False))
    assert "joint_blocks.2.x_block.mlp.fc1.weight" in told and "1 unknown tensors, first more" in told
    # The last block has no layers that change the text, and an MLP there is a fault.
    more = {"model.diffusion_model.joint_blocks.2.context_block.mlp.fc1.weight": torch.zeros(256, 64)}
    save_file({**tensors, **more}, path)
    assert "1 unknown tensors, first joint_blocks.2.context_block" in faults(lambda: FACTS.check(path, False))


def test_a_vae_of_another_model_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    """A folder's says how it scales; of a file only the channels tell."""
    bare = {k: v for k, v in load_file(base).items() if not k.startswith("first_stage_model.")}
    save_file(bare, tmp_path / "bare.safetensors")
    told = faults(lambda: FACTS.check(tmp_path / "bare.safetensors", True))
    assert "holds no VAE" in told and "add vae: the file sd3_vae.safetensors" in told
    FACTS.check(tmp_path / "bare.safetensors", False)
    FACTS.check_vae(base)  # of another file of the family
    FACTS.check_vae(base.parent / "vae.safetensors")
    tiny_flow.autoencoder().save_pretrained(tmp_path / "vae")
    told = faults(lambda: FACTS.check_vae(tmp_path / "vae"))
    assert "this VAE scales latents by 0.3611, that of Stable Diffusion 3.5 by 1.5305" in told
    tiny.models()[1].save_pretrained(tmp_path / "four")
    assert "this VAE makes latents of 4 channels" in faults(lambda: FACTS.check_vae(tmp_path / "four"))
    broken = {k: v for k, v in load_file(base).items() if k != "first_stage_model.decoder.norm_out.weight"}
    save_file(broken, tmp_path / "broken.safetensors")
    told = faults(lambda: FACTS.check(tmp_path / "broken.safetensors", True))
    assert "1 of" in told and "tensors of the VAE are missing: decoder.norm_out.weight" in told


def test_a_published_file_of_another_vae_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its digest, for its tensors are as many and as large; one that is not known is taken."""
    file = base.parent / "vae.safetensors"
    digest, size = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size
    for whose, scale, refused in (("FLUX.1", 0.3611, True), ("Stable Diffusion 3.5", 1.5305, False)):
        monkeypatch.setattr(autoencoder, "PUBLISHED", {digest: (size, whose, scale)})
        if refused:
            told = faults(lambda: FACTS.check_vae(file))
            assert "this is the VAE of FLUX.1, not of Stable Diffusion 3.5; give sd3_vae.safetensors" in told
        else:
            assert FACTS.check_vae(file) is not None
            told = faults(lambda: by_name("flux1").check_vae(file))
            assert "this is the VAE of Stable Diffusion 3.5, not of FLUX.1; give ae.safetensors" in told


# --- text encoders ----------------------------------------------------------------------------------------------------


def test_three_text_encoders_are_told_apart_by_what_is_in_them(base: Path, tmp_path: Path) -> None:
    check: Any = FACTS.check_text
    clip_l, clip_g, t5 = (base.parent / "text" / name for name in
                          ("clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors"))  # fmt: skip
    check(base, [clip_g, t5, clip_l])
    names = "[clip_l.safetensors, clip_g.safetensors, t5xxl_fp16.safetensors]"
    told = faults(lambda: check(base, ()))
    assert "this file holds no text encoders" in told and f"add text_encoder: {names}" in told
    told = faults(lambda: check(base, [clip_l]))
    assert "there is no CLIP-G and no T5" in told and f"write text_encoder: {names}, in any order" in told
    assert "there is no CLIP-L" in faults(lambda: check(base, [t5, clip_g]))
    assert "more than one CLIP-G" in faults(lambda: check(base, [clip_g, clip_g, clip_l, t5]))
    told = faults(lambda: check(base, [base, base.parent / "vae.safetensors", clip_l, t5]))
    assert told.count("this is neither CLIP-L nor CLIP-G nor T5") == 2
    folder = tiny_sd3.write_folder(tmp_path / "folder")
    check(folder, ())
    check(base, [folder])  # those of a diffusers folder
    check(base, [folder / "text_encoder_3", clip_l, clip_g])
    (folder / "text_encoder_2").rename(folder / "else")
    assert "there is no CLIP-G" in faults(lambda: check(folder, ()))
    check(folder, [clip_g])  # the others are its own


def test_text_encoders_of_another_model_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    check: Any = FACTS.check_text
    text = base.parent / "text"
    own = [text / name for name in ("clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors")]
    flux = tiny_flux1.write_texts(tmp_path / "flux", tiny_flux1.models())
    told = faults(lambda: check(base, [flux / "clip_l.safetensors", flux / "t5xxl_fp16.safetensors"]))
    assert "this CLIP is 16 wide, and the base reads CLIP-L of 24 and CLIP-G of 40" in told  # both at once
    assert "this T5 gives states of width 24, the base reads 72" in told
    wrong = tmp_path / "clip_g.safetensors"
    tensors = load_file(own[1])
    save_file({k: v for k, v in tensors.items() if k != "text_projection.weight"}, wrong)
    told = faults(lambda: check(base, [own[0], wrong, own[2]]))
    assert "tensors of the CLIP text encoder are missing: text_projection.weight" in told
    save_file({**tensors, "more": torch.zeros(1)}, wrong)
    assert "1 unknown tensors, first more" in faults(lambda: check(base, [own[0], wrong, own[2]]))
    alone = tmp_path / "alone" / "t5.safetensors"
    alone.parent.mkdir()
    save_file(load_file(own[2]), alone)
    told = faults(lambda: check(base, [*own[:2], alone]))
    assert "there is no tokenizer.json beside this text encoder" in told and "folder tokenizer_3" in told


@torch.no_grad()
def test_a_folders_clip_has_a_projection_and_a_files_has_none(tmp_path: Path) -> None:
    """The one as diffusers reads it; the other as ComfyUI and diffusers' single files do."""
    folder, made = tiny_sd3.write_folder(tmp_path / "folder", projected=True), tiny_sd3.models(projected=True)
    pipe: Any = pipeline_of(made)
    _, _, projected, _ = pipe.encode_prompt("hello", None, None, do_classifier_free_guidance=False)
    ours: Any = load_family(FACTS, folder, OPTIONS)
    assert (ours.encode_text(["hello"])["pooled"] - projected).abs().max() < 1e-5
    made.clip_l.text_projection.weight.data = torch.eye(24)
    _, _, plain, _ = pipe.encode_prompt("hello", None, None, do_classifier_free_guidance=False)
    path = tiny_sd3.write_base(tmp_path / "base.safetensors", projected=True)
    single: Any = load_family(FACTS, path, replace(OPTIONS, **tiny_sd3.beside(tmp_path)))
    assert (single.encode_text(["hello"])["pooled"] - plain).abs().max() < 1e-5
    assert (projected - plain).abs().max() > 0.1


def test_every_fault_of_a_config_is_told_before_anything_is_loaded(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, sample_size=72)
    assert main(["train", "--config", str(config), "train_text_encoder=true"]) == 2
    told = capsys.readouterr().err
    assert "add text_encoder: [clip_l" in told or "train_text_encoder" in told
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert "add text_encoder: [clip_l" in told and "multiples of 16" in told


@pytest.mark.parametrize(("whole", "note"), [(True, ""), (False, "add text_encoder: to it")])
def test_a_new_config_asks_for_what_the_base_has_not_in_it(data: Path, tmp_path: Path, whole: bool, note: str) -> None:
    path = tiny_sd3.write_base(tmp_path / "base.safetensors", whole=whole)
    made = new_config("mine", data, path, "style", "", tmp_path / "mine.yaml")
    told = [line for line in made.notes if "add " in line]
    assert len(told) == bool(note) and all(line.startswith(note) for line in told)


def test_the_template_names_what_stands_beside_the_base() -> None:
    template = flow_checks.template("sd3").base_model
    files = [str(path) for path in sorted(Path(__file__).parent.glob("tiny_f*.py"))[:2]]
    config = flow_checks.template("sd3", text_encoder=f"[{template}, {', '.join(files)}]", vae="null")
    assert len(config.text_encoder or ()) == 3 and config.sample_cfg == 4.5 and config.lora_rank == 16


# --- LoRA files -------------------------------------------------------------------------------------------------------


def test_diffusers_draws_with_the_file_what_we_draw(family: Any, theirs: Any, tmp_path: Path) -> None:
    """Also where other trainers have changed layers that are not trained here."""
    own = flow_checks.save_own(FACTS, every(), tmp_path / "lora.safetensors")
    assert not any(key.endswith(".alpha") for key in own)
    flow_checks.drawn_with(CASE, family, theirs, every(), tmp_path / "lora.safetensors")


def test_all_layers_are_trained_but_two_of_the_last_block(family: Any) -> None:
    """One that stands the other way round in the published file, and one whose answer nobody reads."""
    assert family.trainable().keys() == lora_of().keys()
    linear = {name for name, layer in family.transformer.transformer_blocks.named_modules()
              if isinstance(layer, torch.nn.Linear)}  # fmt: skip
    assert {f"transformer.transformer_blocks.{name}" for name in linear} == {*lora_of(), LAST, UNREAD}


def comfy_names(width: int = 64) -> dict[str, tuple[str, int]]:
    """Stem -> (its own layer, first row), written by hand from what ComfyUI asks a LoRA of SD 3 for."""
    table = {}
    for n in range(3):
        x, context = f"joint_blocks.{n}.x_block", f"joint_blocks.{n}.context_block"
        inner = {f"attn.to_{leaf}": (f"{x}.attn.qkv", k * width) for k, leaf in enumerate("qkv")}
        inner |= {f"attn.add_{leaf}_proj": (f"{context}.attn.qkv", k * width) for k, leaf in enumerate("qkv")}
        inner |= {"attn.to_out.0": (f"{x}.attn.proj", 0), "norm1.linear": (f"{x}.adaLN_modulation.1", 0)}
        inner |= {"ff.net.0.proj": (f"{x}.mlp.fc1", 0), "ff.net.2": (f"{x}.mlp.fc2", 0)}
        if n == 0:
            inner |= {f"attn2.to_{leaf}": (f"{x}.attn2.qkv", k * width) for k, leaf in enumerate("qkv")}
            inner |= {"attn2.to_out.0": (f"{x}.attn2.proj", 0)}
        if n < 2:
            inner |= {"attn.to_add_out": (f"{context}.attn.proj", 0)}
            inner |= {"norm1_context.linear": (f"{context}.adaLN_modulation.1", 0)}
            inner |= {"ff_context.net.0.proj": (f"{context}.mlp.fc1", 0), "ff_context.net.2": (f"{context}.mlp.fc2", 0)}
        table |= {f"transformer.transformer_blocks.{n}.{name}": own for name, own in inner.items()}
    outer = {"context_embedder": "context_embedder", "proj_out": "final_layer.linear"}
    outer |= {"norm_out.linear": "final_layer.adaLN_modulation.1"}
    for name, own in (("timestep", "t_embedder"), ("text", "y_embedder")):
        outer |= {f"time_text_embed.{name}_embedder.linear_{n}": f"{own}.mlp.{2 * n - 2}" for n in (1, 2)}
    return (
        table
        | {f"transformer.{name}": (own, 0) for name, own in outer.items()}
        | {LAST: ("joint_blocks.2.context_block.adaLN_modulation.1", 0)}
    )


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    table = comfy_names()
    form = dialects.own_form(every(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert stems == table.keys() and len({table[stem] for stem in stems}) == len(stems)
    for asked in (base, None):  # also where no base is at hand
        reading = comfyui.read(form.tensors, FACTS.base(asked))
        assert not reading.faults and reading.changes.keys() == every().keys()


@torch.no_grad()
def test_a_file_on_the_published_layout_is_added_to_the_published_weights(base: Path, tmp_path: Path) -> None:
    """kohya's names, as ComfyUI and sd-scripts take them: there ΔW is added to the file's own matrices, q, k and v in
    one, and in the last block with the halves of the text's modulation the other way round."""
    weights = every()
    assert LAST in weights and "transformer.norm_out.linear" in weights
    names = FACTS.names()
    tensors = kohya.to_kohya(weights, names.kohya, dtype=torch.float32, fused=names.fused, turned=names.turned)
    before = load_file(base)
    stems = {f"lora_unet_{k.removeprefix('model.diffusion_model.').replace('.', '_')}"[: -len("_weight")]: k
             for k in before if k.endswith(".weight")}  # fmt: skip
    after = dict(before)
    for stem in {key.partition(".")[0] for key in tensors}:
        up, down = tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"]
        scale = tensors[f"{stem}.alpha"] / len(down)
        after[stems[stem]] = after[stems[stem]] + scale * (up @ down)
    save_file(after, tmp_path / "after.safetensors")
    state = FILES.load(tmp_path / "after.safetensors", torch.float32).state_dict()
    made = tiny_sd3.models().transformer.state_dict()
    for path, w in weights.items():
        key = f"{path.removeprefix('transformer.')}.weight"
        torch.testing.assert_close(state[key], made[key] + w.alpha / w.rank * (w.up @ w.down))
    # So it is merged, too.
    flow_checks.save_own(FACTS, weights, tmp_path / "own.safetensors")
    words = ["merge", "--base", base, "--output", tmp_path / "merged.safetensors", f"{tmp_path / 'own.safetensors'}:1"]
    assert main([str(word) for word in words]) == 0
    merged = load_file(tmp_path / "merged.safetensors")
    assert merged.keys() == after.keys()
    for key, wanted in after.items():
        torch.testing.assert_close(merged[key], wanted)
    # And such a file is read as it was.
    for start, more in (("lora_unet_", 0), ("diffusion_model.", 1)):
        written = tensors
        if more:
            dots = {stem: f"diffusion_model.{k.removeprefix('model.diffusion_model.').removesuffix('.weight')}"
                    for stem, k in stems.items()}  # fmt: skip
            written = {f"{dots[key.partition('.')[0]]}.{key.partition('.')[2]}": t for key, t in tensors.items()}
        assert all(key.startswith(start) for key in written)
        save(tmp_path / "lora.safetensors", written, {})
        back = read(tmp_path / "lora.safetensors").weights
        assert back.keys() == weights.keys()
        for path, w in weights.items():
            assert torch.equal(back[path].up, w.up) and torch.equal(back[path].down, w.down), path


def test_a_lokr_of_the_layer_with_swapped_halves_is_turned_where_it_has_halves(tmp_path: Path) -> None:
    """Else it is refused, as it would be another change; of other blocks, three times as high, it is read as it is."""

    def told(block: int, rows: int, first: list[list[float]]) -> Any:
        stem = f"lora_unet_joint_blocks_{block}_context_block_adaLN_modulation_1"
        w1 = torch.tensor(first)
        leaves = {"lokr_w1": w1, "lokr_w2": torch.ones(rows // len(w1), 64), "alpha": torch.tensor(1.0)}
        save(tmp_path / "lokr.safetensors", {f"{stem}.{leaf}": t for leaf, t in leaves.items()}, {})
        return [
            leaves["lokr_w1"].flatten().tolist()
            for leaves in read(tmp_path / "lokr.safetensors", FACTS).modules.values()
        ]

    assert told(1, 6 * 64, [[1.0], [2.0]]) == [[1, 2]] and told(2, 2 * 64, [[1.0], [2.0]]) == [[2, 1]]
    assert told(2, 2 * 64, [[1.0], [2.0], [3.0], [4.0]]) == [[3, 4, 1, 2]]
    assert "adaLN_modulation_1 may have its halves the other way round" in faults(lambda: told(2, 2 * 64, [[1.0]]))


def test_a_file_in_kohyas_names_has_one_layer_for_q_k_and_v() -> None:
    names = FACTS.names()
    tensors = kohya.to_kohya(lora_of(), names.kohya, dtype=torch.float32, fused=names.fused, turned=names.turned)
    stems = {key.partition(".")[0] for key in tensors}
    assert {"lora_unet_joint_blocks_0_x_block_attn2_qkv", "lora_unet_joint_blocks_2_context_block_attn_qkv"} <= stems
    assert tensors["lora_unet_joint_blocks_1_x_block_attn_qkv.lora_down.weight"].shape == (6, 64)
    assert tensors["lora_unet_joint_blocks_1_x_block_attn_qkv.lora_up.weight"].shape == (192, 6)


@pytest.mark.parametrize("start", ["transformer.", "diffusion_model.", "lycoris_", "lora_transformer_", ""])
@pytest.mark.parametrize(("blocks", "width", "family"), [
    (24, 1536, "sd3"), (38, 2432, "sd3"), (4, 1536, "sd3"), (19, 3072, "flux1"), (4, 3072, "flux1"),
])  # fmt: skip
def test_loras_of_sd3_and_flux1_are_told_apart(
    tmp_path: Path, start: str, blocks: int, width: int, family: str
) -> None:
    """Their attention has the same names: in 24 or 38 blocks where FLUX.1 has 19, 1536 or 2432 wide and not 3072."""
    tensors = {}
    for n in range(blocks):
        name = f"transformer_blocks.{n}.attn.to_q"
        stem = start + (name.replace(".", "_") if start.endswith("_") else name)
        tensors |= {f"{stem}.lora_up.weight": torch.ones(width, 1), f"{stem}.lora_down.weight": torch.ones(1, width)}
    save(tmp_path / "lora.safetensors", tensors, {})
    assert family_of(tmp_path / "lora.safetensors").name == family


def test_a_lora_of_another_model_is_not_taken_for_it(tmp_path: Path) -> None:
    """As wide as FLUX.1's, with more blocks."""
    stems = [f"transformer.transformer_blocks.{n}.attn.to_q" for n in (0, 30)]
    tensors = {f"{stem}.lora_A.weight": torch.ones(1, 3072) for stem in stems}
    tensors |= {f"{stem}.lora_B.weight": torch.ones(3072, 1) for stem in stems}
    save(tmp_path / "lora.safetensors", tensors, {})
    assert "a diffusion transformer that is not known here" in faults(lambda: family_of(tmp_path / "lora.safetensors"))


def test_a_lora_of_mediums_mlp_is_not_taken_for_one_of_another_model(tmp_path: Path) -> None:
    """Inside, it is as wide as Krea 2."""
    tensors = {}
    for leaf, rows, columns in (("attn.to_q", 1536, 1536), ("ff.net.2", 1536, 6144)):
        stem = f"transformer.transformer_blocks.3.{leaf}"
        tensors |= {f"{stem}.lora_A.weight": torch.ones(1, columns), f"{stem}.lora_B.weight": torch.ones(rows, 1)}
    save(tmp_path / "lora.safetensors", tensors, {})
    assert family_of(tmp_path / "lora.safetensors") is FACTS


def test_a_lora_of_its_text_encoders_is_refused(tmp_path: Path) -> None:
    tensors = kohya.to_kohya(lora_of(), FACTS.names().kohya, dtype=torch.float32, fused=FACTS.names().fused)
    stem = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    more = {f"{stem}.lora_up.weight": torch.ones(4, 1), f"{stem}.lora_down.weight": torch.ones(1, 4)}
    save(tmp_path / "lora.safetensors", {**tensors, **more}, {})
    told = faults(lambda: read(tmp_path / "lora.safetensors"))
    assert "this LoRA changes a text encoder, too" in told and "of Stable Diffusion 3.5 none takes a LoRA" in told


@pytest.mark.slow  # as the other families
def test_a_stored_base_and_recomputed_blocks_train(data: Path, tmp_path: Path) -> None:
    folder = tiny_sd3.write_folder(tmp_path / "base")
    written = read(flow_checks.trained(folder, data, tmp_path, batch_size=2, targets="[attention, modulation]")).weights
    assert {path.rpartition(".")[2] for path in written} >= {"to_q", "linear"} and not any(".ff" in p for p in written)
    assert "transformer.transformer_blocks.0.attn2.to_q" in written


def test_a_text_encoder_that_does_not_fit_comes_block_by_block(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_checks.block_by_block(family, monkeypatch)


@pytest.mark.slow  # as the other families (test_gguf)
@torch.no_grad()
def test_a_model_in_blocks_is_the_model_with_their_numbers(tmp_path: Path) -> None:
    """A GGUF file of the transformer alone, held against a file of what the package gguf says its blocks stand for."""
    tiny_gguf = pytest.importorskip("tiny_gguf")
    plain = tiny_sd3.write_base(tmp_path / "base.safetensors", prefix="")
    tensors = {k: v for k, v in load_file(plain).items() if not k.startswith(ASIDE)}
    path, beside = tmp_path / "base.gguf", tiny_sd3.beside(tmp_path)
    save_file(tiny_gguf.write(path, tensors, arch="sd3"), tmp_path / "whole.safetensors")
    assert identify(path) is FACTS.checkpoint
    assert "add vae:" in faults(lambda: FACTS.check(path, True))
    options = replace(OPTIONS, vae=plain, **beside)  # the VAE inside of another file will do
    ours, want = (load_family(FACTS, p, options) for p in (path, tmp_path / "whole.safetensors"))
    x, texts = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1)), ours.encode_text(["hello"])
    one, two = (family.predict(x, torch.tensor([0.6]), texts) for family in (ours, want))  # type: ignore[attr-defined]
    assert (one - two).abs().max() < 1e-5 * two.abs().max()
    held, full = (sum(t.nbytes for t in f.transformer.state_dict().values()) for f in (ours, want))  # type: ignore[attr-defined]
    assert held < 0.6 * full
