"""FLUX.2 klein, on a narrow random model: numbers against diffusers' own modules, pipeline and converters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from safetensors.torch import load_file, save_file

import flow_checks
import tiny
import tiny_flow
import tiny_flux2
from flow_checks import PROMPTS, Case
from lora_scripts.adapters import lycoris
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.black_forest import flux2_layout as layout
from lora_scripts.families.flow.autoencoder import VAE16
from lora_scripts.families.flux2.check import FILES
from lora_scripts.families.table import by_name, identify
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import read, save
from lora_scripts.losses.flow import STEPS
from lora_scripts.workshop.inspect import inspect
from runs import faults

FACTS = by_name("flux2")

base, family = flow_checks.fixtures(FACTS, tiny_flux2)


def lora_of() -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_flux2.models().transformer)


@pytest.fixture(scope="module")
def theirs() -> Flux2KleinPipeline:
    return flow_checks.pipeline_of(Flux2KleinPipeline, tiny_flux2.models(), tiny_flux2.scheduler())


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    (states, text_ids), ids = theirs.encode_prompt([caption]), theirs._prepare_latent_ids(x)
    tokens = theirs.transformer(
        hidden_states=theirs._pack_latents(x),
        timestep=sigma,
        guidance=None,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return theirs._unpack_latents_with_ids(tokens, ids)


def latents(theirs: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `flow_checks.latents`; of their deviation, which the pipeline does not need, the statistics by hand."""
    mean = theirs._encode_vae_image(pixels, torch.Generator())
    std = theirs._patchify_latents(theirs.vae.encode(pixels).latent_dist.std)
    return mean, std / (theirs.vae.bn.running_var + theirs.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)


def levels(theirs: Any, steps: int, tokens: int) -> None:
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


CASE = Case(FACTS, tiny_flux2, FILES, layout, answer, latents, levels)


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Flux2KleinPipeline) -> None:
    """All 512 tokens, those that fill them up too; only the layers up to the last that is read are loaded."""
    ours, (want, _) = family.encode_text(PROMPTS), theirs.encode_prompt(list(PROMPTS))
    assert ours["states"].shape == want.shape == (2, 512, 72)
    assert (ours["states"] - want).abs().max() < 1e-4 * want.abs().max()
    assert len(family.encoder._model.layers) == 27 < len(theirs.text_encoder.model.layers)


@torch.no_grad()
def test_a_caption_that_is_too_long_is_cut(family: Any, theirs: Flux2KleinPipeline) -> None:
    long = "hello how are you " * 200
    ours, (want, _) = family.encode_text([long])["states"], theirs.encode_prompt([long])
    assert family.encoder.excess(long) > 0 and (ours - want).abs().max() < 1e-4 * want.abs().max()


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 1024, 4096, 4300, 4301, 8192])
@pytest.mark.parametrize("steps", [4, 28, 50])
def test_the_shift_is_theirs(family: Any, tokens: int, steps: int) -> None:
    sigmas, mu = family.objective.sigmas, compute_empirical_mu(tokens, steps)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = torch.tensor(sigmas.steps(steps, tokens))
    assert (ours - scheduler.sigmas[:-1]).abs().max() < 1e-6 and ours[0] == 1.0
    # Training meets the levels of a sampler of 50 steps; the least of these by value.
    if steps == STEPS:
        u = torch.tensor([1.0, 1 / steps], dtype=torch.float64)
        assert (sigmas.at(u, tokens) - scheduler.sigmas[[0, steps - 1]]).abs().max() < 1e-6


def test_tokens_are_those_of_packed_latents(family: Any) -> None:
    """Four times too few, or too many, is a known mistake: a picture of 1024 x 1024 has 4096."""
    assert family.tokens(torch.empty(1, 128, 64, 64)) == 4096
    latents = family.encode_image(torch.zeros(1, 3, 64, 96))
    assert latents["mean"].shape == (1, 128, 4, 6) and family.tokens(latents["mean"]) == 24


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Flux2KleinPipeline) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, STEPS)


@torch.no_grad()
def test_latents_have_the_running_statistics_taken_off(family: Any, theirs: Flux2KleinPipeline) -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(6)) * 2 - 1
    ours, (mean, std) = family.encode_image(pixels), latents(theirs, pixels)
    assert (ours["mean"] - mean).abs().max() < 1e-5
    assert (ours["std"] - std).abs().max() < 1e-5


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Flux2KleinPipeline, cfg: float) -> None:
    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        return theirs(prompt=PROMPTS[0], guidance_scale=cfg, latents=noise, **size).images[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str) -> None:
    path = tiny_flux2.write_base(tmp_path / "base.safetensors", prefix=prefix)
    own = tiny_flux2.models().transformer
    flow_checks.one_file(CASE, path, prefix, own, convert_flux2_transformer_checkpoint_to_diffusers)


@pytest.mark.parametrize("names", ["published", "diffusers"])
def test_the_vae_is_read_in_both_spellings(base: Path, tmp_path: Path, names: str) -> None:
    from lora_scripts.families.flow.autoencoder import VAE32

    made = tiny_flux2.models().vae
    path = base.parent / "ae.safetensors"
    if names == "diffusers":
        path = tmp_path / "vae.safetensors"
        save_file({key: value.contiguous() for key, value in made.state_dict().items()}, path)
    flow_checks.same(VAE32.load(path, "FLUX.2 klein").state_dict(), made.state_dict())


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    """So that merging adds to the right rows: the layer whose halves the file has the other way round is no target."""
    assert flow_checks.misplaced(FACTS, base, tiny_flux2.beside) == []


def test_the_widths_of_4b_and_9b_count_as_their_names_say() -> None:
    def count(widths: layout.Flux2Layout) -> float:
        return sum(torch.Size(row.shape).numel() for row in layout.rows(widths)) / 1e9

    four = layout.Flux2Layout(width=3072, double=5, single=20, text_width=7680, inner=9216)
    assert round(count(four)) == 4 and round(count(layout.KLEIN)) == 9


def test_relatives_and_parts_of_other_models_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base)
    save_file({**tensors, "guidance_in.in_layer.weight": torch.zeros(32, 256)}, tmp_path / "dev.safetensors")
    assert identify(tmp_path / "dev.safetensors").words == "a FLUX.2 dev checkpoint"
    folder = tiny_flux2.write_folder(tmp_path / "distilled", is_distilled=True)
    assert identify(folder).words == "a FLUX.2 klein distilled to few steps"
    check_text = FACTS.check_text
    assert check_text is not None
    assert "add text_encoder" in faults(lambda: check_text(base, ()))
    assert "add vae: the file flux2-vae.safetensors" in faults(lambda: FACTS.check(base, True))
    (text, tok), cut = tiny_flow.language(width=40), tiny_flow.language(layers=26)
    other = tiny_flow.write_text(tmp_path / "wide" / "qwen.safetensors", tiny_flow.Models(None, None, text, tok))
    assert "gives states of width 40, the base reads 24" in faults(lambda: check_text(base, [other]))
    short = tiny_flow.write_text(tmp_path / "cut" / "qwen.safetensors", tiny_flow.Models(None, None, *cut))
    assert "has 26 layers, the base reads the states behind 27" in faults(lambda: check_text(base, [short]))
    ae = tiny_flow.write_vae(tmp_path / "ae.safetensors", tiny_flow.autoencoder())
    assert "latents of 16 channels, FLUX.2 klein has 32" in faults(lambda: FACTS.check_vae(ae))
    assert "latents of 32 channels, Z-Image has 16" in faults(
        lambda: VAE16.check(base.parent / "ae.safetensors", "Z-Image")
    )


# --- LoRA files -------------------------------------------------------------------------------------------------------


def test_diffusers_draws_with_the_file_what_we_draw(family: Any, theirs: Flux2KleinPipeline, tmp_path: Path) -> None:
    flow_checks.save_own(FACTS, lora_of(), tmp_path / "lora.safetensors")
    flow_checks.drawn_with(CASE, family, theirs, lora_of(), tmp_path / "lora.safetensors")


def comfy_names(width: int = 32) -> dict[str, tuple[str, int]]:
    """Stem -> (its own layer, first row), written by hand from what ComfyUI asks a LoRA of FLUX.2 for."""
    inner = {f"attn.to_{leaf}": ("img_attn.qkv", n * width) for n, leaf in enumerate("qkv")}
    inner |= {f"attn.add_{leaf}_proj": ("txt_attn.qkv", n * width) for n, leaf in enumerate("qkv")}
    inner |= {"attn.to_out.0": ("img_attn.proj", 0), "attn.to_add_out": ("txt_attn.proj", 0)}
    for ff, mlp in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        inner |= {f"{ff}.linear_in": (f"{mlp}.0", 0), f"{ff}.linear_out": (f"{mlp}.2", 0)}
    rows = {f"transformer_blocks.0.{name}": (f"double_blocks.0.{own}", row) for name, (own, row) in inner.items()}
    for n in (0, 1):
        at = f"single_transformer_blocks.{n}.attn"
        rows |= {f"{at}.to_qkv_mlp_proj": (f"single_blocks.{n}.linear1", 0)}
        rows |= {f"{at}.to_out": (f"single_blocks.{n}.linear2", 0)}
    rows |= {"x_embedder": ("img_in", 0), "context_embedder": ("txt_in", 0)}
    rows |= {"norm_out.linear": ("final_layer.adaLN_modulation.1", 0), "proj_out": ("final_layer.linear", 0)}
    table: dict[str, tuple[str, int]] = {}
    for name, place in rows.items():
        flat = name.replace(".", "_")
        table |= dict.fromkeys((f"transformer.{name}", f"lycoris_{flat}", f"lora_transformer_{flat}"), place)
    return table


NEW = tuple(f"transformer.{name}" for name in ("time_guidance_embed", "double_stream_", "single_stream_modulation"))


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    table = comfy_names()
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    assert not any(key.endswith(".alpha") for key in form.tensors)  # diffusers stops at one
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    unknown = {stem for stem in stems if stem.startswith(NEW)}  # under diffusers' names
    assert stems - unknown <= table.keys() and len({table[stem] for stem in stems - unknown}) == 16 + 4
    reading = comfyui.read(form.tensors, FACTS.base(base))
    assert {fault.key.partition(".lora_")[0] for fault in reading.faults} == unknown == FACTS.names().unasked
    assert reading.changes.keys() == lora_of().keys() - unknown and len(unknown) == 5
    # ai-toolkit's word before diffusers' names is none that it asks for here.
    other = {key.replace("transformer.", "diffusion_model.", 1): value for key, value in form.tensors.items()}
    assert not comfyui.read(other, FACTS.base(base)).changes


@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model."])
def test_a_lora_on_the_published_layout_is_read_as_diffusers_reads_it(tmp_path: Path, start: str) -> None:
    """As kohya's tools and ai-toolkit write them: q, k and v are one layer."""
    from diffusers.loaders import Flux2LoraLoaderMixin

    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for stem, out in (("double_blocks.0.txt_attn.qkv", 96), ("single_blocks.1.linear1", 288)):
        down, up = torch.randn(4, 32, generator=generator), torch.randn(out, 4, generator=generator)
        if start == "lora_unet_":
            flat = start + stem.replace(".", "_")
            tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
            tensors[f"{flat}.alpha"] = torch.tensor(2.0)
        else:
            tensors |= {f"{start}{stem}.lora_A.weight": down, f"{start}{stem}.lora_B.weight": up}
    save(tmp_path / "fused.safetensors", tensors, {})
    file = read(tmp_path / "fused.safetensors")
    assert file.family is FACTS and len(file.weights) == 4
    want = Flux2LoraLoaderMixin.lora_state_dict(str(tmp_path / "fused.safetensors"))
    for path, weights in file.weights.items():
        change = want[f"{path}.lora_B.weight"] @ want[f"{path}.lora_A.weight"]
        assert torch.allclose(factors.of(weights).dense().float(), change, atol=1e-5), path


def test_what_musubi_tuner_converts_is_read_as_before(tmp_path: Path) -> None:
    """Its `convert_lora.py` makes a _ of the dot behind `attn`, a name that no program asks for."""
    table, own = FACTS.names(), {path: w for path, w in lora_of().items() if "transformer_blocks" in path}
    flat = kohya.to_kohya(own, table.kohya, dtype=torch.float32, fused=table.fused, turned=table.turned)
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    tensors = {}
    for key, tensor in flat.items():
        stem, _, end = key.partition(".")
        words = stem.removeprefix("lora_unet_").split("_")  # double blocks 0 img attn qkv
        name = "_".join(words[:2]) + f".{words[2]}." + "_".join(words[3:]).replace("mlp_", "mlp.")
        if end in ends:
            scale = (float(flat[f"{stem}.alpha"]) / len(flat[f"{stem}.lora_down.weight"])) ** 0.5
            tensors[f"diffusion_model.{name}.{ends[end]}"] = tensor * scale
    assert "diffusion_model.double_blocks.0.txt_attn_qkv.lora_A.weight" in tensors
    assert "diffusion_model.double_blocks.0.img_attn_proj.lora_B.weight" in tensors
    save(tmp_path / "other.safetensors", tensors, {})
    file = read(tmp_path / "other.safetensors")
    assert file.family is FACTS and file.weights.keys() == own.keys()
    for path, weights in file.weights.items():
        want = own[path].up @ own[path].down * (own[path].alpha / own[path].rank)
        assert torch.allclose(factors.of(weights).dense().float(), want, atol=1e-5), path
    told = inspect(tmp_path / "other.safetensors").reports[0]
    assert told.family == "FLUX.2 klein" and told.loads["ComfyUI"].startswith("no: ")


def test_a_lora_with_more_blocks_is_of_another_model(tmp_path: Path) -> None:
    """FLUX.1's has the same names, for 19 and 38 blocks."""
    tensors = {}
    for n in (0, 1, 18):
        stem = f"lora_unet_double_blocks_{n}_img_attn_proj"
        tensors |= {f"{stem}.lora_down.weight": torch.ones(2, 32), f"{stem}.lora_up.weight": torch.ones(32, 2)}
    save(tmp_path / "flux1.safetensors", tensors, {})
    told = faults(lambda: read(tmp_path / "flux1.safetensors", FACTS))
    assert "this LoRA is for FLUX.1, the base model is FLUX.2 klein" in told


@pytest.mark.parametrize("adapter", ["lora", "lokr"])
def test_a_folder_with_a_stored_base_and_recomputed_blocks_trains(data: Path, tmp_path: Path, adapter: str) -> None:
    flow_checks.trained(tiny_flux2.write_folder(tmp_path / "base"), data, tmp_path, adapter=adapter)


def test_a_lora_of_every_layer_is_gone_on_from(base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    """As OneTrainer's preset "full" makes them: what lies around the blocks stays in the file, and ComfyUI, which does
    not know all of it under these names, is told of and not asked."""
    flow_checks.save_own(FACTS, lora_of(), tmp_path / "full.safetensors")
    keys = {"init_lora": tmp_path / "full.safetensors", "epochs": 1, "save_precision": "fp32"}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys, **tiny_flux2.beside(base.parent))
    assert main(["train", "--config", str(config)]) == 0
    assert "note: ComfyUI read no LoRA of layers around the blocks under these names" in capsys.readouterr().out
    written = read(tmp_path / "out" / "out.safetensors").weights
    assert written.keys() == lora_of().keys()
    for path, w in lora_of().items():
        same = torch.equal(written[path].up, w.up)
        assert same != (path in flow_checks.in_blocks(lora_of())), path


def test_a_lora_of_every_layer_is_merged_where_the_layers_are(base: Path, tmp_path: Path) -> None:
    """By hand, also where the file has a layer's halves the other way round than the model."""
    flow_checks.save_own(FACTS, lora_of(), tmp_path / "full.safetensors")
    words = ["merge", "--base", base, "--output", tmp_path / "merged.safetensors", f"{tmp_path / 'full.safetensors'}:1"]
    assert main([str(word) for word in words]) == 0
    before, after = load_file(base), load_file(tmp_path / "merged.safetensors")
    prefix = next(key for key in before if key.endswith("img_in.weight")).removesuffix("img_in.weight")
    for ours, own in (("x_embedder", "img_in"), ("proj_out", "final_layer.linear"),
                      ("single_stream_modulation.linear", "single_stream_modulation.lin"),
                      ("norm_out.linear", "final_layer.adaLN_modulation.1")):  # fmt: skip
        w = lora_of()[f"transformer.{ours}"]
        change = 0.5 / 2 * (w.up @ w.down)
        if ours == "norm_out.linear":
            change = torch.cat([change[32:], change[:32]])
        key = f"{prefix}{own}.weight"
        torch.testing.assert_close(after[key], before[key] + change)


@pytest.mark.parametrize("kind", ["lokr", "low rank", "loha"])
def test_a_lokr_or_loha_of_q_k_and_v_together_is_shared_out(tmp_path: Path, kind: str) -> None:
    """As ai-toolkit trains them, on the published layers."""
    g = torch.Generator().manual_seed(0)
    shapes = {
        "lokr": {"lokr_w1": (6, 4), "lokr_w2": (16, 8)},
        "low rank": {"lokr_w1_a": (6, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (16, 2), "lokr_w2_b": (2, 8)},
        "loha": {"hada_w1_a": (96, 2), "hada_w1_b": (2, 32), "hada_w2_a": (96, 2), "hada_w2_b": (2, 32)},
    }
    leaves = {leaf: torch.randn(*shape, generator=g) for leaf, shape in shapes[kind].items()}
    if kind == "loha":
        whole = (leaves["hada_w1_a"] @ leaves["hada_w1_b"]) * (leaves["hada_w2_a"] @ leaves["hada_w2_b"]) / 2
    else:
        low = "lokr_w1" not in leaves
        first, second = (leaves[f"{w}_a"] @ leaves[f"{w}_b"] if low else leaves[w] for w in ("lokr_w1", "lokr_w2"))
        whole = torch.kron(first, second) * (0.5 if low else 1)
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{stem}.{leaf}": tensor for leaf, tensor in leaves.items()} | {f"{stem}.alpha": torch.tensor(1.0)}
    save(tmp_path / "lycoris.safetensors", tensors, {})
    found = read(tmp_path / "lycoris.safetensors", FACTS).modules
    for n, leaf in enumerate("qkv"):
        change = lycoris.change_of(found[f"transformer.transformer_blocks.0.attn.to_{leaf}"], torch.empty(32, 32))
        torch.testing.assert_close(change, whole[32 * n : 32 * (n + 1)])
