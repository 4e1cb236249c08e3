"""CLIP-L of FLUX.1 with a LoRA on it: files, pictures, loss and gradients against diffusers, transformers and PEFT."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import flow_checks
import tiny
import tiny_flux1
from flow_checks import OPTIONS, PROMPTS
from lora_scripts.adapters.inject import inject, remove
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.base import Sampling
from lora_scripts.families.flow import clip_l
from lora_scripts.families.table import by_name, load_family
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.loras.on_model import apply
from lora_scripts.loras.stack import LoraStack, Worn
from lora_scripts.losses.noise import Draws
from lora_scripts.train.asked import Said
from lora_scripts.workshop.common import Weighted
from lora_scripts.workshop.merge import merge, unmerge
from runs import faults, stopped
from test_flux1 import CASE, answer, drawn, narrow, pipeline_of

FACTS = by_name("flux1")
CLIP = "text_encoder."

base, family = flow_checks.fixtures(FACTS, tiny_flux1)


@pytest.fixture(scope="module")
def theirs() -> FluxPipeline:
    return pipeline_of(tiny_flux1.models())


def clip_lora(width: int = 16, layers: int = 1, rank: int = 2, alpha: float = 0.5) -> dict[str, LoraWeights]:
    """On every layer of a CLIP so wide, strong enough to be seen."""
    generator, weights = torch.Generator().manual_seed(8), {}
    for n in range(layers):
        at = f"{CLIP}encoder.layers.{n}"
        sides = {f"{at}.self_attn.{leaf}": (width, width) for leaf in ("q_proj", "k_proj", "v_proj", "out_proj")}
        sides |= {f"{at}.mlp.fc1": (4 * width, width), f"{at}.mlp.fc2": (width, 4 * width)}
        for path, (out, inner) in sides.items():
            down, up = (torch.randn(*shape, generator=generator) for shape in ((rank, inner), (out, rank)))
            weights[path] = LoraWeights(down, up, alpha)
    return weights


def both() -> dict[str, LoraWeights]:
    return {**flow_checks.lora_of(FACTS, tiny_flux1.models().transformer), **clip_lora()}


def in_kohya(weights: dict[str, LoraWeights]) -> dict[str, torch.Tensor]:
    names = FACTS.names()
    return kohya.to_kohya(weights, names.kohya, dtype=torch.float32, fused=names.fused, turned=names.turned)


def change(w: LoraWeights) -> torch.Tensor:
    return (w.up.double() @ w.down.double()) * w.alpha / w.rank


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_kohya_and_diffusers() -> None:
    """Of the published CLIP-L, as transformers 4 named its layers, whatever the installed one does."""
    names = FACTS.names()
    own = {path for path in names.written if path.startswith(CLIP)}
    path = f"{CLIP}encoder.layers.11.self_attn.q_proj"
    assert len(own) == 72 and names.kohya[path] == "lora_te1_text_model_encoder_layers_11_self_attn_q_proj"
    assert names.written[path] == "text_encoder.text_model.encoder.layers.11.self_attn.q_proj"
    with torch.device("meta"):
        published = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    linear = {name for name, module in published.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {CLIP + name.removeprefix("text_model.") for name in linear} == own
    rows = {layer.path: layer.shape for layer in clip_l.layers(clip_l.STANDARD, shapes=True)}
    assert rows == {
        CLIP + n.removeprefix("text_model."): tuple(published.get_submodule(n).weight.shape) for n in linear
    }


@pytest.mark.parametrize("flat", [False, True])
def test_a_file_of_diffusers_own_training_is_read(tmp_path: Path, *, flat: bool) -> None:
    """As its dreambooth script for FLUX.1 writes it, with PEFT and its own saver; `flat`: as newer transformers name
    the layers."""
    made = tiny_flux1.models()
    parts = {"transformer": copy.deepcopy(made.transformer), "text_encoder": copy.deepcopy(made.clip)}
    targets = {
        "transformer": ["to_k", "to_q", "ff.net.0.proj"],
        "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    }
    layers: dict[str, Any] = {}
    want: dict[str, torch.Tensor] = {}
    for part, model in parts.items():
        model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets[part], init_lora_weights=False))
        layers[part] = get_peft_model_state_dict(model)
        if part == "text_encoder":
            bare = {key.removeprefix("text_model."): value for key, value in layers[part].items()}
            layers[part] = bare if flat else {f"text_model.{key}": value for key, value in bare.items()}
        for name, module in model.named_modules():
            if hasattr(module, "lora_A"):
                want[f"{part}.{name.removeprefix('text_model.')}"] = module.get_delta_weight("default").detach()
    FluxPipeline.save_lora_weights(tmp_path, layers["transformer"], layers["text_encoder"])
    file = read(tmp_path / "pytorch_lora_weights.safetensors")
    assert file.family is FACTS and file.weights.keys() == want.keys() and len(want) == 11
    assert all((change(w) - want[path]).abs().max() < 1e-6 for path, w in file.weights.items())


@pytest.mark.parametrize("form", ["kohya", "flat", "onetrainer", "comfyui", "own", "folder"])
def test_files_of_other_trainers_are_read(tmp_path: Path, form: str) -> None:
    """sd-scripts' names, the same derived from newer transformers, OneTrainer's, ComfyUI's, and PEFT's folders."""
    weights, path = both(), tmp_path / "lora.safetensors"
    tensors, metadata = in_kohya(weights), dict[str, str]()
    if form == "flat":
        tensors = {key.replace("lora_te1_text_model_", "lora_te1_"): tensor for key, tensor in tensors.items()}
    elif form == "onetrainer":
        plain = {
            f"lora_transformer_{p.partition('.')[2].replace('.', '_')}": w for p, w in weights.items() if CLIP not in p
        }
        table = {stem: stem for stem in plain}
        tensors = {k: t for k, t in tensors.items() if k.startswith("lora_te1_")}
        tensors |= kohya.to_kohya(plain, table, dtype=torch.float32)
    elif form != "kohya":
        folded = dialects.own_form(weights, FACTS.names(), torch.float32)
        tensors, metadata = folded.tensors, folded.metadata
        if form == "comfyui":
            start = "text_encoders.clip_l.transformer.text_model."
            tensors = {key.replace("text_encoder.text_model.", start): tensor for key, tensor in tensors.items()}
    save(path, tensors, metadata)
    if form == "folder":
        assert main(["convert", str(path), "--to", "peft", "--output", str(tmp_path / "adapter")]) == 0
        path = tmp_path / "adapter"
        assert sorted(p.name for p in path.iterdir()) == ["text_encoder", "transformer"]
    file = read(path)
    assert file.family is FACTS and file.weights.keys() == weights.keys()
    assert all(torch.allclose(change(w), change(weights[p]), atol=1e-6) for p, w in file.weights.items())


@pytest.mark.parametrize(
    "stem", ["lora_te3_encoder_block_0_layer_0_SelfAttention_q", "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
             "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"]
)  # fmt: skip
def test_a_lora_of_t5_is_refused_by_name(tmp_path: Path, stem: str) -> None:
    """As sd-scripts, OneTrainer and ComfyUI call its layers."""
    more = {f"{stem}.lora_down.weight": torch.ones(2, 24), f"{stem}.lora_up.weight": torch.ones(16, 2)}
    save(tmp_path / "lora.safetensors", {**in_kohya(both()), **more}, {})
    told = faults(lambda: read(tmp_path / "lora.safetensors"))
    assert f"changes T5, too (it has {stem}" in told and "which takes none here" in told


def test_a_file_of_clip_alone_is_of_the_model_that_it_names(tmp_path: Path) -> None:
    """SD 1.x, SDXL and FLUX.1 have the same CLIP-L."""
    weights = clip_lora(768, layers=2)
    path = tmp_path / "lora.safetensors"
    save(path, in_kohya(weights), {"ss_base_model_version": "flux1"})
    assert family_of(path) is FACTS
    for tensors in (in_kohya(weights), dialects.own_form(weights, FACTS.names(), torch.float32).tensors):
        save(path, tensors, {})
        assert family_of(path).name in ("sd1", "sdxl") and read(path, FACTS).weights.keys() == weights.keys()


@pytest.mark.slow  # the life of a LoRA has it, too
def test_comfyui_and_diffusers_read_every_layer(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow_checks.save_own(FACTS, both(), tmp_path / "lora.safetensors")
    assert main(["verify", str(tmp_path / "lora.safetensors"), "--base", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in lines} == {"ComfyUI", "diffusers", "PEFT"}
    assert all("32 of 32 modules, ΔW equal" in line for line in lines)
    tensors = load_file(tmp_path / "lora.safetensors")
    del tensors["text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight"]
    save(tmp_path / "lora.safetensors", tensors, {})
    assert main(["verify", str(tmp_path / "lora.safetensors"), "--base", str(base)]) == 2


def test_merged_into_two_files_both_are_the_base_plus_their_change(base: Path, tmp_path: Path) -> None:
    """The transformer's and CLIP's; without the second the LoRA is refused, and nothing written."""
    weights = both()
    save(tmp_path / "lora.safetensors", in_kohya(weights), {})
    merged, lora = tmp_path / "merged.safetensors", Weighted(tmp_path / "lora.safetensors", 0.5)
    told = faults(lambda: merge(base, [lora], merged))
    assert "changes the text encoder, too, and there is none in base.safetensors" in told and "--text-encoder" in told
    clip = base.parent / "text" / "clip_l.safetensors"
    assert "this CLIP" in faults(lambda: merge(base, [lora], merged, text_encoder=wide_clip(tmp_path)))
    assert not merged.exists()
    result = merge(base, [lora], merged, text_encoder=clip)
    second = tmp_path / "merged-clip_l.safetensors"
    assert {part.file for part in result.files} == {merged, second} and result.changed == len(weights)
    before, after = load_file(clip), load_file(second)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        path = CLIP + key.removeprefix("text_model.").removesuffix(".weight")
        want = change(weights[path]) / 2 if path in weights and key.endswith(".weight") else 0
        assert (after[key].double() - tensor.double() - want).abs().max() < 1e-6, key
    unmerge(merged, [lora], tmp_path / "back.safetensors", text_encoder=second)
    back = load_file(tmp_path / "back-merged-clip_l.safetensors")
    assert all((back[key] - before[key]).abs().max() < 1e-6 for key in before)


@pytest.mark.slow
def test_two_merged_files_are_a_base_that_draws_so(base: Path, tmp_path: Path) -> None:
    """As the LoRA draws at that strength; a base without a CLIP of its own in a file is told to leave it out."""
    flow_checks.save_own(FACTS, both(), tmp_path / "lora.safetensors")
    merged, lora = tmp_path / "merged.safetensors", Weighted(tmp_path / "lora.safetensors", 0.5)
    clip = base.parent / "text" / "clip_l.safetensors"
    folder = tiny_flux1.write_folder(tmp_path / "folder")
    assert "leave it out" in faults(lambda: merge(folder, [lora], tmp_path / "out", text_encoder=clip))
    merge(base, [lora], merged, text_encoder=clip)
    texts = [tmp_path / "merged-clip_l.safetensors", clip.with_name("t5xxl_fp16.safetensors")]
    model: Any = load_family(FACTS, merged, replace(OPTIONS, text_encoder=texts, vae=base.parent / "ae.safetensors"))
    worn: Any = load_family(FACTS, base, replace(OPTIONS, **tiny_flux1.beside(base.parent)))
    apply(worn, read(lora.path, FACTS).modules, 0.5)
    asked = (PROMPTS[0], 7, Sampling(2, 3.5, size=(64, 64)))
    flow_checks.alike(model.generate(*asked), worn.generate(*asked))


def wide_clip(folder: Path) -> Path:
    """A CLIP of another width."""
    state = CLIPTextModel(CLIPTextConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=1)).state_dict()
    named = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}
    save_file(named, folder / "wide.safetensors")
    return folder / "wide.safetensors"


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["own", pytest.param("kohya", marks=pytest.mark.slow)])
def test_a_preview_with_it_is_the_pipelines(
    family: Any, theirs: FluxPipeline, tmp_path: Path, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' own pipeline, which loads the file by itself, draws the same; so do both without it, afterwards."""
    weights, path = both(), tmp_path / "lora.safetensors"
    if names == "own":
        flow_checks.save_own(FACTS, weights, path)
    else:
        save(path, in_kohya(weights), {})
        function = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
        convert = narrow(function, ("dims=[3072, 3072, 3072, 12288]", "dims=[64, 64, 64, 256]"))
        monkeypatch.setattr("diffusers.loaders.lora_pipeline._convert_kohya_flux_lora_to_diffusers", convert)
    bare = np.asarray(family.generate(PROMPTS[0], 7, Sampling(4, 3.5, size=(64, 96))), dtype=int)
    layers = apply(family, read(path, FACTS).modules, 1.0)
    theirs.load_lora_weights(str(path), adapter_name="mine")
    draw = partial(drawn, theirs, guidance_scale=3.5)
    flow_checks.preview(CASE, family, theirs, draw, cfg=3.5)
    worn = np.asarray(family.generate(PROMPTS[0], 7, Sampling(4, 3.5, size=(64, 96))), dtype=int)
    for layer in (layer for path, layer in layers.items() if path.startswith(CLIP)):
        layer.strength = 0.0  # <lora:name:1:0>
    half = np.asarray(family.generate(PROMPTS[0], 7, Sampling(4, 3.5, size=(64, 96))), dtype=int)
    assert abs(worn - bare).max() > 20 and abs(worn - half).max() > 4
    remove(family.roots, layers)
    theirs.unload_lora_weights()
    flow_checks.preview(CASE, family, theirs, draw, cfg=3.5)


def test_merged_for_drawing_it_counts_as_it_does_beside_the_weights(family: Any, tmp_path: Path) -> None:
    """As `generate` wears LoRAs, where nothing that is on CLIP tells of them; and taken off, it is the base again."""
    path, pictures = tmp_path / "lora.safetensors", list[Any]()
    flow_checks.save_own(FACTS, clip_lora(), path)
    asked = (PROMPTS[0], 7, Sampling(2, 3.5, size=(64, 64)))
    bare = family.generate(*asked)
    for merged in (False, True):
        stack = LoraStack(family, merged=merged)
        stack.wear([Worn(path, 1.0, 1.0)])
        family.encoder.rest()
        pictures.append(family.generate(*asked))
        stack.take_off()
        flow_checks.alike(family.generate(*asked), bare)
    flow_checks.alike(*pictures)
    assert abs(np.asarray(pictures[0], dtype=int) - np.asarray(bare, dtype=int)).max() > 4


def test_clip_is_there_once_it_is_worn(base: Path) -> None:
    """Before, what was read of a prompt is kept, and neither T5 nor CLIP stay; afterwards that counts for T5 alone."""
    family: Any = load_family(FACTS, base, replace(OPTIONS, **tiny_flux1.beside(base.parent)))
    encoder = family.encoder
    encoder.remember(["hello"])
    bare = encoder.told(["hello"])["pooled"]
    encoder.rest()
    assert encoder._clip is None and encoder._model is None
    assert torch.equal(encoder.told(["hello"])["pooled"], bare) and encoder._clip is None
    layers = apply(family, clip_lora(), 1.0)
    encoder.rest()
    worn = encoder.told(["hello"])["pooled"]
    assert encoder._clip is not None and encoder._model is None and (worn - bare).abs().max() > 1e-2
    assert torch.equal(family.encode_text(["hello"])["pooled"], bare)  # what is cached is the base's
    encoder._kept.clear()
    assert torch.equal(family.encode_text(["hello"])["pooled"], bare)
    assert torch.equal(encoder.told(["hello"])["pooled"], worn)
    remove(family.roots, layers)
    assert torch.equal(encoder.told(["hello"])["pooled"], bare)


# --- the loss and its gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_their_modules(base: Path, tmp_path: Path, *, checkpointing: bool) -> None:
    """Of both parts' LoRA, by PEFT on diffusers' transformer and transformers' CLIP; what is cached of CLIP does not
    count."""
    options = replace(OPTIONS, memory=MemoryOptions(checkpointing), **tiny_flux1.beside(base.parent))  # type: ignore[arg-type]
    family: Any = load_family(FACTS, base, options)
    weights = {path: replace(w, alpha=float(w.rank)) for path, w in flow_checks.in_blocks(both()).items()}
    theirs = pipeline_of(tiny_flux1.models())
    flow_checks.save_own(FACTS, weights, tmp_path / "lora.safetensors")
    theirs.load_lora_weights(str(tmp_path / "lora.safetensors"), adapter_name="mine")

    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(2, 3, 64, 96, generator=generator) * 2 - 1
    noise, posterior = (torch.randn(2, 16, 12, 8, generator=generator).mT.contiguous() for _ in range(2))
    u = torch.tensor([0.3, 0.8], dtype=torch.float64)
    batch = flow_checks.batch_of(family, pixels, PROMPTS)
    assert batch.texts is not None
    family.encoder.rest()
    layers: Any = inject(family.roots, weights, lambda path, layer: LoraLayer(layer, 2, 2.0), reset=False)
    for path, layer in layers.items():
        layer.load({"down": weights[path].down, "up": weights[path].up})
    sigma = family.objective.sigmas.at(u, 24).float()
    ours = family.losses(batch, family.objective, Draws(u, noise, posterior))
    ours.sum().backward()
    assert family.encoder._model is None  # T5 was not needed again

    x0 = batch.latents["mean"] + batch.latents["std"] * posterior
    parameters = {"transformer": theirs.transformer, "text_encoder": theirs.text_encoder}
    found = {}
    for part, model in parameters.items():
        for name, module in model.named_modules():
            if hasattr(module, "lora_A"):
                found[f"{part}.{name.removeprefix('text_model.')}"] = module
    for module in found.values():
        module.lora_A["mine"].weight.requires_grad_(True)
        module.lora_B["mine"].weight.requires_grad_(True)
    assert found.keys() == layers.keys()
    want = torch.zeros(())
    for row in range(2):
        one, s = slice(row, row + 1), sigma[row]
        x_t = (1 - s) * x0[one] + s * noise[one]
        error = (noise[one] - x0[one] - answer(theirs, x_t, s[None], PROMPTS[row])).square().mean()
        assert abs(ours[row].item() - error.item()) < 1e-5 * error.item()
        want = want + error
    want.backward()
    for path, layer in layers.items():
        for value, module in (("down", found[path].lora_A["mine"]), ("up", found[path].lora_B["mine"])):
            mine, grad = layer.values()[value].grad, module.weight.grad
            assert grad.abs().max() > 0 and (mine - grad).norm() < 1e-5 * grad.norm(), (path, value)


# --- training ---------------------------------------------------------------------------------------------------------


def test_it_is_trained_while_t5_is_gone(base: Path, data: Path, tmp_path: Path) -> None:
    """The cache keeps what the base says of captions, for runs that leave CLIP alone."""
    keys = {
        "train_text_encoder": "true",
        "text_encoder_lr": 3e-4,
        "targets": "['*.0.attn.*']",
        **tiny_flux1.beside(base.parent),
    }
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    parts = stopped(config, 2)
    encoder: Any = parts.model.family.encoder  # type: ignore[attr-defined]
    assert encoder._model is None and encoder.clip.worn
    moved = {path: layer.delta().abs().max() for path, layer in parts.model.layers.items() if path.startswith(CLIP)}
    assert len(moved) == 6 and all(size > 0 for size in moved.values())
    captions = {sample.caption for sample in parts.samples}
    bare = load_family(FACTS, base, replace(OPTIONS, **tiny_flux1.beside(base.parent)))  # type: ignore[arg-type]
    for caption in captions:
        cached = parts.feed.encoded.told([Said(caption)])
        assert (cached["pooled"][0] - bare.encode_text([caption])["pooled"][0]).abs().max() < 1e-6


@pytest.mark.slow
def test_without_the_key_clip_is_left_alone(base: Path, data: Path, tmp_path: Path) -> None:
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **tiny_flux1.beside(base.parent))
    parts = stopped(config, 1)
    encoder: Any = parts.model.family.encoder  # type: ignore[attr-defined]
    assert encoder._clip is None and not any(path.startswith(CLIP) for path in parts.model.layers)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_clip(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_flux1.write_base(tmp_path / "base.safetensors")
    keys = {"train_text_encoder": "true", "targets": "['*.0.attn.*']", **tiny_flux1.beside(tmp_path)}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    stopped(config, 1)
    made = tiny_flux1.models()
    tiny_flux1.write_texts(tmp_path / "text", made._replace(clip=tiny_flux1.models(seed=1).clip))
    assert main(["train", "--config", str(config), "--resume"]) == 2
    assert "something changed: text_encoder" in capsys.readouterr().err
    tiny_flux1.write_texts(tmp_path / "text", made)
    assert main(["train", "--config", str(config), "--resume"]) == 0
