"""Z-Image, on a narrow random model: numbers against diffusers' own modules, pipeline, scheduler and converters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

import flow_checks
import tiny
import tiny_flow
import tiny_zimage
from flow_checks import OPTIONS, PROMPTS, Case
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.base import Sampling
from lora_scripts.families.flow.transformer import Transformer
from lora_scripts.families.sd.latents import Normal, pack, unpack
from lora_scripts.families.sd.rows import to_rows
from lora_scripts.families.table import by_name, find, load_family
from lora_scripts.families.zimage import layout
from lora_scripts.families.zimage.check import FILES
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import open_lora, read, save
from lora_scripts.loras.unfused import unfused
from lora_scripts.losses.noise import Draws
from runs import faults

FACTS = by_name("zimage")

base, family = flow_checks.fixtures(FACTS, tiny_zimage)


def lora_of() -> dict[str, LoraWeights]:
    return flow_checks.lora_of(FACTS, tiny_zimage.models().transformer)


@pytest.fixture(scope="module")
def theirs() -> ZImagePipeline:
    return flow_checks.pipeline_of(ZImagePipeline, tiny_zimage.models(), tiny_zimage.scheduler())


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str) -> torch.Tensor:
    """Their time and their velocity go the other way."""
    states = theirs._encode_prompt([caption])
    return -theirs.transformer([x[0].unsqueeze(1)], 1 - sigma, states, return_dict=False)[0][0].squeeze(1)[None]


CASE = Case(FACTS, tiny_zimage, FILES, layout, answer)


def test_the_rows_of_the_published_widths_are_its_parameters() -> None:
    """6,154,908,736, as its card says."""
    assert sum(math.prod(row.shape) for row in layout.rows(layout.STANDARD)) == 6_154_908_736


@pytest.mark.parametrize("name", ["zimage_style", "flux2_klein_style", "flux2_dev_style"])
def test_the_templates_name_what_stands_beside_the_base(name: str) -> None:
    config = flow_checks.template(name.removesuffix("_style"))
    assert config.text_encoder == (config.base_model,) and config.base_precision == "fp8"


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: ZImagePipeline) -> None:
    ours = family.encode_text(PROMPTS)
    for row, length, want in zip(ours["states"], ours["lengths"], theirs._encode_prompt(list(PROMPTS)), strict=True):
        assert length == len(want) and (row[:length] - want).abs().max() < 1e-5
        assert not row[length:].any()


def test_a_caption_that_is_too_long_is_cut_and_told(family: Any, theirs: ZImagePipeline) -> None:
    long = "hello how are you " * 160
    (ours,), (want,) = family.encode_text([long])["states"], theirs._encode_prompt([long])
    assert len(ours) == len(want) == 512 and (ours - want).abs().max() < 1e-5
    assert family.encoder.excess(long) > 0 == family.encoder.excess("hello")


def test_the_text_encoder_is_asked_first_and_then_gone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def first(encoder: Any) -> None:
        encoder.encode(["hello"])
        order.append("captions" if encoder._model is not None else "nothing")

    real = Transformer.load
    monkeypatch.setattr(Transformer, "load", lambda *words, **more: order.append("transformer") or real(*words, **more))
    beside: Any = tiny_zimage.beside(base.parent)
    made: Any = load_family(FACTS, base, replace(OPTIONS, first=first, **beside))
    assert order == ["captions", "transformer"] and made.encoder._model is None
    assert len(made.encode_text(["hello"])["states"]) == 1 and made.encoder._model is not None
    made.rest(text_encoder=True)
    assert made.encoder._model is None


def test_a_run_loads_the_text_encoder_once(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions come from the cache, and what is drawn on the way and in the end was asked before."""
    from lora_scripts.families.flow import reader

    asked: list[str] = []
    loads: list[int] = []
    states, build = reader.LanguageEncoder._states, reader.build
    monkeypatch.setattr(reader, "build", lambda *words, **more: loads.append(len(asked)) or build(*words, **more))
    monkeypatch.setattr(reader.LanguageEncoder, "_states", lambda self, text: asked.append(text) or states(self, text))
    keys = {"epochs": 1, "sample_every": 2, "sample_cfg": 4, "cache_dir": tmp_path / "cache"}
    config = tiny.write_config(
        tmp_path, base_model=base, train_data_dir=data, **keys, **tiny_zimage.beside(base.parent)
    )
    assert main(["train", "--config", str(config)]) == 0
    captions = {f"picture {n}, a gradient, round {n}" for n in range(5)} | {""}
    assert len(loads) == 1 and captions <= set(asked)
    asked.clear()
    assert main(["train", "--config", str(config), f"output_dir={tmp_path / 'again'}"]) == 0
    assert len(loads) == 2  # once more, for what is drawn


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: ZImagePipeline) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, steps=20)


def test_a_neighbour_with_a_longer_caption_changes_nothing(family: Any) -> None:
    flow_checks.neighbour(family)


def test_a_folder_says_which_levels_its_sampler_has(tmp_path: Path) -> None:
    folder = tiny_zimage.write_folder(tmp_path / "base", shift=6.0)
    sigmas = load_family(FACTS, folder, OPTIONS).objective.sigmas
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    u = torch.tensor([1.0, 1 / 1000], dtype=torch.float64)
    assert (sigmas.at(u, 16) - scheduler.sigmas[[0, 999]]).abs().max() < 1e-6  # the noisiest, and the least


def test_a_shift_of_the_config_is_in_place_of_the_samplers(base: Path, data: Path, tmp_path: Path) -> None:
    from lora_scripts.run.build import objective_of
    from lora_scripts.run.configs import load_config

    beside = tiny_zimage.beside(base.parent)
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **beside)
    plain, given = (load_config(config, words) for words in ([], ["timestep_shift=2"]))
    from lora_scripts.losses.diffusion import Objective
    from lora_scripts.losses.flow import Sigmas

    made = Objective("flow", sigmas=Sigmas(3.0))
    assert objective_of(plain, made).sigmas.shift == 3.0 and objective_of(plain, made).timesteps.shift == 1.0
    assert objective_of(given, made).sigmas.shift == 1.0 and objective_of(given, made).timesteps.shift == 2.0


def test_a_level_counts_as_it_is_after_the_shift(base: Path, family: Any, data: Path, tmp_path: Path) -> None:
    """As diffusers' scripts ask for the weights: of the sigma that was mixed in."""
    from lora_scripts.run.build import objective_of
    from lora_scripts.run.configs import load_config

    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **tiny_zimage.beside(base.parent))
    words = ["loss_weighting=cosmap", "timestep_sampling=mode", "timestep_mode_scale=0.5"]
    objective = objective_of(load_config(config, words), family.objective)
    assert (objective.timesteps.sampling, objective.timesteps.mode_scale) == ("mode", 0.5)
    batch = flow_checks.batch_of(family, torch.rand(2, 3, 64, 96) * 2 - 1, PROMPTS)
    noise = torch.randn(2, 16, 8, 12)
    draws = Draws(torch.tensor([0.3, 0.8], dtype=torch.float64), noise, noise)
    with torch.no_grad():
        plain, weighted = (family.losses(batch, one, draws) for one in (family.objective, objective))
    sigma = family.objective.sigmas.at(draws.u, 24)
    torch.testing.assert_close(weighted / plain, (2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))).float())


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_preview_is_the_pipelines_picture(family: Any, theirs: ZImagePipeline, cfg: float) -> None:
    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        # Their scale counts from the prompt's own answer: ours, as everywhere else, from the other one's.
        more = {"guidance_scale": cfg - 1, "negative_prompt": "sunny"}
        return theirs(PROMPTS[0], latents=noise, **more, **size).images[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=cfg, negative="sunny")


def test_pictures_have_sides_that_patches_fill(family: Any) -> None:
    assert "multiples of 16" in faults(lambda: family.generate("hello", 0, Sampling(steps=1, size=(72, 64))))


def test_latents_are_normalised_as_data_says() -> None:
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(x)), x) and pack(x).shape == (2, 12, 2, 3)
    assert torch.equal(pack(x)[0, 1], x[0, 0, ::2, 1::2])
    mean, std = torch.rand(12, 1, 1) + 1, torch.rand(12, 1, 1) + 1
    normal = Normal(1 / std, mean, packed=True)
    into, spread = normal.into(x, torch.ones_like(x))
    assert torch.allclose(into, (pack(x) - mean) / std) and torch.allclose(spread, 1 / std.expand(2, 12, 2, 3))
    assert torch.allclose(normal.back(into), x, atol=1e-6)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str) -> None:
    path = tiny_zimage.write_base(tmp_path / "base.safetensors", prefix=prefix)
    own = tiny_zimage.models().transformer
    flow_checks.one_file(CASE, path, prefix, own, convert_z_image_transformer_checkpoint_to_diffusers)


def test_a_model_goes_back_into_the_file_it_came_from(base: Path) -> None:
    before = load_file(base)
    rows = layout.rows(layout.layout_of({key: value.shape for key, value in before.items()}, base))
    flow_checks.same(before, to_rows(rows, FILES.load(base, torch.float32).state_dict()))


def test_weights_in_fp8_with_a_scale_are_made_whole(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base)
    key = "layers.0.attention.qkv.weight"
    whole = tensors[key]
    scale = whole.abs().max() / 448
    tensors[key] = (whole / scale).to(torch.float8_e4m3fn)
    tensors["layers.0.attention.qkv.weight_scale"] = scale
    tensors["layers.0.attention.qkv.comfy_quant"] = torch.zeros(3, dtype=torch.uint8)
    save_file(tensors, tmp_path / "fp8.safetensors")
    FACTS.check(tmp_path / "fp8.safetensors", False)
    state = FILES.load(tmp_path / "fp8.safetensors", torch.float32).state_dict()
    want = tensors[key].float() * scale
    assert torch.equal(torch.cat([state[f"layers.0.attention.to_{leaf}.weight"] for leaf in "qkv"]), want)


def test_what_is_missing_is_named_with_the_key_that_brings_it(base: Path, tmp_path: Path) -> None:
    assert "add vae: the file ae.safetensors" in faults(lambda: FACTS.check(base, True))
    assert FACTS.check_text is not None
    check_text = FACTS.check_text
    assert "add text_encoder: its file, or its folder" in faults(lambda: check_text(base, ()))
    made = tiny_zimage.models()
    alone = tiny_flow.write_text(tmp_path / "alone" / "qwen.safetensors", made)
    (alone.parent / "tokenizer.json").unlink()
    assert "there is no tokenizer.json beside this text encoder" in faults(lambda: check_text(base, [alone]))
    tensors = load_file(base)
    del tensors["layers.1.attention.qkv.weight"]
    save_file({**tensors, "more": torch.zeros(1)}, tmp_path / "broken.safetensors")
    told = faults(lambda: FACTS.check(tmp_path / "broken.safetensors", False))
    assert "layers.1.attention.qkv.weight" in told and "1 unknown tensors, first more" in told


def test_a_tokenizer_without_the_signs_of_the_template_is_refused(base: Path, tmp_path: Path) -> None:
    assert FACTS.check_text is not None
    text = tiny_flow.write_text(tmp_path / "text" / "qwen.safetensors", tiny_zimage.models())
    tokenizer = text.with_name("tokenizer.json")
    table = json.loads(tokenizer.read_text("utf-8"))
    table["added_tokens"] = [row for row in table["added_tokens"] if row["content"] != "<|im_end|>"]
    tokenizer.write_text(json.dumps(table), "utf-8")
    assert "does not know <|im_end|>" in faults(lambda: FACTS.check_text(base, [text]))  # type: ignore[misc]


def test_a_key_that_nobody_reads_may_be_there(base: Path, tmp_path: Path) -> None:
    """`norm_final.weight`, which published files have."""
    tensors = load_file(base)
    save_file({**tensors, "norm_final.weight": torch.ones(4)}, tmp_path / "more.safetensors")
    FACTS.check(tmp_path / "more.safetensors", False)
    assert FACTS.unread("model.diffusion_model.norm_final.weight", False)


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_zimage.beside) == []


def test_parts_of_another_model_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    check_text = FACTS.check_text
    assert check_text is not None
    text, tok = tiny_flow.language(width=40)
    other = tiny_flow.write_text(tmp_path / "wide" / "qwen.safetensors", tiny_flow.Models(None, None, text, tok))
    assert "gives states of width 40, the base reads 24" in faults(lambda: check_text(base, [other]))
    assert "is no Qwen3 text encoder" in faults(lambda: check_text(base, [base]))
    sd1 = tiny.write_base(tmp_path / "sd1.safetensors")
    assert "makes latents of 4 channels, Z-Image has 16" in faults(lambda: FACTS.check_vae(sd1))
    assert "not a VAE of Z-Image" in faults(lambda: FACTS.check_vae(base))
    tiny.models()[1].save_pretrained(tmp_path / "vae")
    assert "makes latents of 4 channels, Z-Image has 16" in faults(lambda: FACTS.check_vae(tmp_path / "vae"))


def test_every_fault_of_a_config_is_told_before_anything_is_loaded(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, resolution=104, sample_size=72)
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert "add vae:" in told and "add text_encoder:" in told
    assert (
        "resolution 104 x 104: sides must be multiples of 16 for this base; write resolution: 96" in told
        and "96]" not in told
    )
    assert "sample_size 72 x 72: sides must be multiples of 16 for this base; write sample_size: 64" in told
    more = [f"{key}={tiny.written(path)}" for key, path in tiny_zimage.beside(base.parent).items()]
    assert main(["train", "--config", str(config), "resolution=64", "sample_size=64", "min_snr_gamma=5", *more]) == 2
    assert "min_snr_gamma=5: is for models that predict noise or v" in capsys.readouterr().err


# --- LoRA files -------------------------------------------------------------------------------------------------------


def in_kohya(weights: dict[str, LoraWeights]) -> dict[str, torch.Tensor]:
    names = FACTS.names()
    return kohya.to_kohya(weights, names.kohya, dtype=torch.float32, fused=names.fused)


@pytest.mark.parametrize("names", ["own", "kohya"])
def test_diffusers_draws_with_the_file_what_we_draw(
    family: Any, theirs: ZImagePipeline, tmp_path: Path, names: str
) -> None:
    """Also with kohya's names, in which q, k and v are one layer."""
    weights = lora_of()
    if names == "own":
        tensors = flow_checks.save_own(FACTS, weights, tmp_path / "lora.safetensors")
        assert not any(key.endswith(".alpha") for key in tensors)
    else:
        weights = flow_checks.in_blocks(weights)  # the others it does not read in this naming
        save(tmp_path / "lora.safetensors", in_kohya(weights), {})
    flow_checks.drawn_with(CASE, family, theirs, weights, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("old", [False, True])
def test_a_file_in_kohyas_names_comes_back_as_it_was(tmp_path: Path, old: bool) -> None:
    """Also one of the names that were written before, which are diffusers' with "_"."""
    weights, names = lora_of(), FACTS.names()
    table = {path: f"lora_unet_{path.removeprefix('transformer.').replace('.', '_')}" for path in weights}
    tensors = kohya.to_kohya(weights, table, dtype=torch.float32) if old else in_kohya(weights)
    whole = tensors.get("lora_unet_layers_0_attention_qkv.lora_up.weight")
    assert old or (whole is not None and whole.shape == (96, 6))
    assert any("_to_q." in key for key in tensors) == old
    save(tmp_path / "lora.safetensors", tensors, {})
    back = read(tmp_path / "lora.safetensors").weights
    assert back.keys() == weights.keys()
    for path, w in weights.items():
        assert torch.equal(back[path].up, w.up) and torch.equal(back[path].down, w.down) and w.alpha == back[path].alpha
    if not old:  # one A for the three stays one layer of its rank
        first = {path: group[0] for group in names.together for path in group}
        alike = {p: LoraWeights(weights[first.get(p, p)].down, w.up, w.alpha) for p, w in weights.items()}
        assert in_kohya(alike)["lora_unet_layers_0_attention_qkv.lora_down.weight"].shape == (2, 32)


def comfy_names(width: int = 32) -> dict[str, tuple[str, int]]:
    """Stem -> (its own layer, first row), written by hand from what ComfyUI asks a LoRA of Z-Image for."""
    table: dict[str, tuple[str, int]] = {}
    blocks = ["layers.0", "layers.1", "context_refiner.0", "noise_refiner.0"]
    for at in blocks:
        inner = {f"attention.to_{leaf}": ("attention.qkv", n * width) for n, leaf in enumerate("qkv")}
        inner["attention.to_out.0"] = ("attention.out", 0)
        inner |= {f"feed_forward.w{n}": (f"feed_forward.w{n}", 0) for n in (1, 2, 3)}
        if not at.startswith("context"):
            inner["adaLN_modulation.0"] = ("adaLN_modulation.0", 0)
        for name, (own, row) in inner.items():
            flat = f"{at}.{name}".replace(".", "_")
            stems = (f"diffusion_model.{at}.{name}", f"transformer.{at}.{name}", f"lycoris_{flat}", f"{at}.{name}")
            table |= dict.fromkeys(stems, (f"{at}.{own}", row))
            if row == 0:
                table[f"lora_unet_{at}.{own}".replace(".", "_")] = (f"{at}.{own}", 0)
    outer = {name: name for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1")}
    outer |= {"all_x_embedder.2-1": "x_embedder"}
    outer |= {f"all_final_layer.2-1.{name}": f"final_layer.{name}" for name in ("linear", "adaLN_modulation.1")}
    for name, own in outer.items():
        stems = (f"diffusion_model.{name}", f"transformer.{name}", name, f"lora_unet_{own.replace('.', '_')}")
        table |= dict.fromkeys(stems, (own, 0))
    return table


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    table = comfy_names()
    form = dialects.own_form(lora_of(), FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert stems <= table.keys() and len({table[stem] for stem in stems}) == len(stems) == 31 + 6
    reading = comfyui.read(form.tensors, FACTS.base(base))
    assert not reading.faults and reading.changes.keys() == lora_of().keys()
    flat = in_kohya(lora_of())
    assert {key.partition(".")[0] for key in flat} <= table.keys()
    reading = comfyui.read(unfused(flat, FACTS.names()), FACTS.base(base))
    assert not reading.faults and reading.changes.keys() == lora_of().keys()
    # Those with diffusers' layers are none that it asks for.
    weights = flow_checks.in_blocks(lora_of())
    old = {path: f"lora_unet_{path.removeprefix('transformer.').replace('.', '_')}" for path in weights}
    flat = kohya.to_kohya(weights, old, dtype=torch.float32)
    left = {fault.key.partition(".")[0] for fault in comfyui.read(flat, FACTS.base(base)).faults}
    assert left == {k.partition(".")[0] for k in flat if k.partition(".")[0] not in table}
    assert len(left) == 4 * 4  # and attention.to_out.0, which it knows as attention.out


@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model."])
def test_a_lora_on_the_published_layout_is_read(tmp_path: Path, start: str) -> None:
    """As musubi-tuner writes them: q, k and v are one layer."""
    generator = torch.Generator().manual_seed(4)
    down, up = torch.randn(4, 32, generator=generator), torch.randn(96, 4, generator=generator)
    stem = "layers.0.attention.qkv"
    stem = start + (stem.replace(".", "_") if start == "lora_unet_" else stem)
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    save(tmp_path / "fused.safetensors", tensors, {})
    file = read(tmp_path / "fused.safetensors")
    assert file.family is FACTS and len(file.weights) == 3
    whole = torch.cat([factors.of(file.weights[f"transformer.layers.0.attention.to_{leaf}"]).dense() for leaf in "qkv"])
    assert torch.allclose(whole.float(), 0.5 * up @ down, atol=1e-5)


def test_a_lora_of_another_family_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    flow_checks.save_own(FACTS, lora_of(), tmp_path / "lora.safetensors")
    told = faults(lambda: read(tmp_path / "lora.safetensors", by_name("sdxl")))
    assert "this LoRA is for Z-Image, the base model is SDXL" in told
    assert open_lora(tmp_path / "lora.safetensors").require_family() is FACTS
    # Folded once, and unfolded on the way back: alpha is what it was.
    assert {w.alpha for w in read(tmp_path / "lora.safetensors").weights.values()} == {0.5}


@pytest.mark.parametrize("adapter", ["dora", "lokr"])
def test_other_adapters_are_trained_and_proved(base: Path, data: Path, tmp_path: Path, adapter: str) -> None:
    keys = {"adapter": adapter, "save_precision": "fp32", "epochs": 1, **tiny_zimage.beside(base.parent)}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    assert main(["train", "--config", str(config)]) == 0
    assert (tmp_path / "out" / "out.safetensors").exists()


def test_a_strength_that_is_no_power_of_two_is_proved(base: Path, data: Path, tmp_path: Path) -> None:
    """In the precision that files have unless another is asked for: alpha / rank is folded into them, and rounded."""
    keys = {
        "lora_rank": 4,
        "lora_alpha": 3,
        "epochs": 1,
        "targets": "['*layers.0.*']",
        **tiny_zimage.beside(base.parent),
    }
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    assert main(["train", "--config", str(config)]) == 0
    assert {w.alpha for w in read(tmp_path / "out" / "out.safetensors").weights.values()} == {3.0}


def test_a_stored_base_and_recomputed_blocks_train(tmp_path: Path) -> None:
    """Pictures that are no squares, at a resolution whose eighth is no multiple of what a token covers."""
    folder, data = tiny_zimage.write_folder(tmp_path / "base"), tiny.write_pictures(tmp_path / "data", 2, (96, 72))
    flow_checks.trained(folder, data, tmp_path, batch_size=2)
    assert find(folder) is FACTS
