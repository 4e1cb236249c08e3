"""FLUX.2 dev, on a narrow random model: numbers against diffusers' own modules, pipeline and converter.

What it shares with klein is held in test_flux2.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Pipeline
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

import flow_checks
import tiny_flux2
import tiny_flux2_dev
import tiny_gguf
from flow_checks import PROMPTS, Case
from lora_scripts.compute.memory import MemoryOptions, place
from lora_scripts.compute.quantised import ScaledLinear
from lora_scripts.families.black_forest import flux2_layout as layout
from lora_scripts.families.flow.reader import LanguageEncoder, build
from lora_scripts.families.flow.token_files import bare_tokenizer
from lora_scripts.families.flux2_dev.check import FILES
from lora_scripts.families.flux2_dev.model import READING
from lora_scripts.families.table import by_name, identify
from lora_scripts.loras import dialects
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.file import family_of, read, save
from lora_scripts.losses.flow import STEPS
from runs import faults
from test_flux2 import NEW, comfy_names, latents, levels

FACTS = by_name("flux2_dev")

base, family = flow_checks.fixtures(FACTS, tiny_flux2_dev)


@pytest.fixture(scope="module")
def theirs() -> Flux2Pipeline:
    return flow_checks.pipeline_of(Flux2Pipeline, tiny_flux2_dev.models(), tiny_flux2_dev.scheduler())


def answer(theirs: Any, x: torch.Tensor, sigma: torch.Tensor, caption: str, guidance: float = 1.0) -> torch.Tensor:
    """Told a guidance of 1, as in training."""
    (states, text_ids), ids = theirs.encode_prompt([caption]), theirs._prepare_latent_ids(x)
    tokens = theirs.transformer(
        hidden_states=theirs._pack_latents(x),
        timestep=sigma,
        guidance=torch.tensor([guidance]),
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return theirs._unpack_latents_with_ids(tokens, ids)


CASE = Case(FACTS, tiny_flux2_dev, FILES, layout, answer, latents, levels)


# --- captions ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_captions_are_read_as_the_pipeline_reads_them(family: Any, theirs: Flux2Pipeline) -> None:
    """All 512 tokens, those before it that fill them up too; only the layers that are read are loaded."""
    captions = ["sunny [IMG]Paris", "hello how are you " * 200]
    ours, (want, _) = family.encode_text(captions)["states"], theirs.encode_prompt(captions)
    assert ours.shape == want.shape == (2, 512, 72)
    assert (ours - want).abs().max() < 1e-4 * want.abs().max()
    first, last = ours[0, 0], ours[0, -1]
    assert torch.equal(first, ours[0, 1]) and (first - last).abs().max() > 0.1 * want.abs().max()
    assert [family.encoder.excess(caption) > 0 for caption in captions] == [False, True]
    assert len(family.encoder._model.layers) == 30 < len(theirs.text_encoder.model.language_model.layers)


def test_for_a_card_the_text_encoder_is_mapped(base: Path) -> None:
    """It has the same numbers, where the file's lie."""
    source = FILES.find_text(base, [base.parent / "text" / tiny_flux2_dev.FILE])
    encoders = (LanguageEncoder(READING, source, torch.device(name), torch.float32) for name in ("cpu", "cuda"))
    copied, lent = (encoder._build() for encoder in encoders)
    flow_checks.same(copied.state_dict(), lent.state_dict())
    if sys.platform == "linux":
        places = [row.split() for row in Path("/proc/self/maps").read_text().splitlines() if str(source.path) in row]
        spans = [[int(place, 16) for place in row[0].split("-")] for row in places]
        at = (model.layers[1].mlp.up_proj.weight.data_ptr() for model in (copied, lent))
        assert [any(start <= place < end for start, end in spans) for place in at] == [False, True]


def test_a_tekken_reads_as_transformers_reads_it(base: Path, tmp_path: Path) -> None:
    """From the text encoder's file, and from tekken.json."""
    path = tmp_path / "tekken.json"
    want = tiny_flux2_dev.tokenizer(path).backend_tokenizer
    text: Any = tiny_flux2_dev.beside(base.parent)["text_encoder"]
    for ours in (bare_tokenizer(path), bare_tokenizer(text[0])):
        for words in (
            "<s>[SYSTEM_PROMPT]hello how[/SYSTEM_PROMPT][INST]sunny Paris[/INST]",
            "héllo  wörld\n\n12 [INST",
            "的",
        ):
            assert ours.encode(words, add_special_tokens=False).ids == want.encode(words, add_special_tokens=False).ids
        assert json.loads(ours.to_str())["model"] == json.loads(want.to_str())["model"]
        assert ours.get_vocab() == want.get_vocab() and ours.token_to_id("<SPECIAL_19>") == 19


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_that_of_their_modules(family: Any, theirs: Flux2Pipeline) -> None:
    flow_checks.loss_of_a_batch(CASE, family, theirs, STEPS)


def test_noise_levels_are_those_of_klein(family: Any) -> None:
    """Which test_flux2.py holds against the pipeline; the first and the last of 28 for 1024 x 1024 by value: of mu
    2.1514 the last is 1 / (1 + 27 / e^mu)."""
    steps = family.objective.sigmas.steps(28, 4096)
    assert steps[0] == 1.0 and abs(steps[-1] - 0.24151) < 1e-5
    assert family.tokens(torch.empty(1, 128, 64, 64)) == 4096


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_preview_is_the_pipelines_picture(family: Any, theirs: Flux2Pipeline) -> None:
    def draw(noise: torch.Tensor, size: dict[str, int]) -> Any:
        return theirs(prompt=PROMPTS[0], guidance_scale=4.0, latents=noise, **size).images[0]

    flow_checks.preview(CASE, family, theirs, draw, cfg=4.0)


@torch.no_grad()
def test_guidance_is_told(family: Any) -> None:
    x, texts = torch.ones(1, 128, 4, 4), family.encode_text(["hello"])
    one, four = (family.predict(x, torch.tensor([0.5]), {**texts, "guidance": torch.tensor([g])}) for g in (1.0, 4.0))
    assert torch.equal(one, family.predict(x, torch.tensor([0.5]), texts)) and not torch.equal(one, four)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_read_as_their_converter_reads_it(tmp_path: Path, prefix: str) -> None:
    path = tiny_flux2_dev.write_base(tmp_path / "base.safetensors", prefix=prefix)
    own = tiny_flux2_dev.models().transformer
    flow_checks.one_file(CASE, path, prefix, own, convert_flux2_transformer_checkpoint_to_diffusers)


def test_a_weight_of_the_file_is_the_models(base: Path) -> None:
    assert flow_checks.misplaced(FACTS, base, tiny_flux2_dev.beside) == []


def test_the_widths_count_as_the_name_says() -> None:
    count = sum(torch.Size(row.shape).numel() for row in layout.rows(layout.DEV)) / 1e9
    assert round(count) == 32


# --- what belongs together --------------------------------------------------------------------------------------------


def test_klein_and_dev_are_told_apart(base: Path, tmp_path: Path) -> None:
    """By the layer that is told the guidance, by the folder's config, and, where that is damaged, by its index."""
    klein = tiny_flux2.write_base(tmp_path / "klein" / "base.safetensors")
    assert identify(base).words == "a FLUX.2 dev checkpoint" and identify(klein).words == "a FLUX.2 klein checkpoint"
    for made, words in ((tiny_flux2_dev, "dev"), (tiny_flux2, "klein")):
        folder = made.write_folder(tmp_path / words)
        assert identify(folder).words == f"a FLUX.2 {words} checkpoint"
        (folder / "transformer" / "config.json").write_text("{", encoding="utf-8")
        assert identify(folder).words == f"a FLUX.2 {words} checkpoint"


def test_the_text_encoder_of_the_other_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    klein = tiny_flux2.write_base(tmp_path / "klein" / "base.safetensors")
    mistral: Any = tiny_flux2_dev.beside(base.parent)["text_encoder"]
    qwen: Any = tiny_flux2.beside(klein.parent)["text_encoder"]
    wrong = text_faults(base, qwen)
    assert "this is no Mistral Small 3 text encoder, but Qwen3" in wrong and "give mistral_3_small_flux2" in wrong
    check = by_name("flux2").check_text
    assert check is not None
    assert "this is no Qwen3 text encoder, but Mistral Small 3" in faults(lambda: check(klein, mistral))
    assert "add text_encoder" in text_faults(base, [])
    assert "add vae: the file flux2-vae.safetensors" in faults(lambda: FACTS.check(base, True))
    vae: Any = tiny_flux2_dev.beside(base.parent)["vae"]
    assert "this is no Mistral Small 3 text encoder" in text_faults(base, [vae])


def text_faults(base: Path, given: list[Path]) -> str:
    check = FACTS.check_text
    assert check is not None
    return faults(lambda: check(base, given))


def test_what_a_text_encoder_lacks_is_named(base: Path, tmp_path: Path) -> None:
    """The tokenizer, layers, numbers that are no floats."""
    state = tiny_flux2_dev.models().text.state_dict()
    path = tiny_flux2_dev.write_text(tmp_path / "bare.safetensors", state, own=False)
    told = text_faults(base, [path])
    assert "there is no tokenizer.json or tekken.json beside this text encoder" in told
    (tmp_path / "tekken.json").write_text('{"config": {}, "vocab": [], "special_tokens": []}', encoding="utf-8")
    assert "does not know <s>, <pad>, [SYSTEM_PROMPT]" in text_faults(base, [path])
    (tmp_path / "tekken.json").write_text("{}", encoding="utf-8")
    assert "is no tokenizer" in text_faults(base, [path])
    (tmp_path / "tekken.json").write_bytes(tiny_flux2_dev.tekken())
    FILES.check_text(base, [path])
    short = tiny_flux2_dev.write_text(tmp_path / "short.safetensors", state, 29)
    assert "has 29 layers, the base reads the states behind 30" in text_faults(base, [short])
    weight = "model.layers.0.self_attn.q_proj.weight"
    packed = {weight: torch.zeros(256, 12, dtype=torch.uint8), f"{weight}_scale_2": torch.ones(())}
    save_file({**load_file(path), **packed}, tmp_path / "fp4.safetensors")
    told = text_faults(base, [tmp_path / "fp4.safetensors"])
    assert "1 tensors are not floating point" in told and "give the bf16, fp16, fp32, fp8 or int8 version" in told
    tiny_gguf.write(tmp_path / "text.gguf", {"blk.0.attn_q.weight": torch.zeros(32, 32)}, arch="mistral3")
    assert "this GGUF file is of the kind mistral3" in text_faults(base, [tmp_path / "text.gguf"])


def in_fp8(tensors: dict[str, torch.Tensor], ends: tuple[str, ...], *, rows: bool = False) -> dict[str, torch.Tensor]:
    """As ComfyUI has it: beside a weight its scale, of all or of each row, and a word on the format."""
    made, most = dict(tensors), torch.finfo(torch.float8_e4m3fn).max
    for key in [key for key in tensors if key.endswith(ends)]:
        stem = key.removesuffix(".weight")
        scale = tensors[key].abs().amax(1, keepdim=True) / most if rows else tensors[key].abs().max() / most
        made[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
        made |= {f"{stem}.weight_scale": scale, f"{stem}.comfy_quant": torch.zeros(24, dtype=torch.uint8)}
    return made


@torch.no_grad()
def test_an_fp8_text_encoder_is_made_whole_or_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    """The second for a card; it gives the same bits. Its tower may have scales, too."""
    tensors = in_fp8(load_file(base.parent / "text" / tiny_flux2_dev.FILE), ("_proj.weight", "linear_1.weight"))
    save_file(tensors, tmp_path / "fp8.safetensors")
    source = FILES.find_text(base, [tmp_path / "fp8.safetensors"])
    whole, lent = (build(source, 2, torch.bfloat16, mapped=mapped) for mapped in (False, True))
    stem = "model.layers.0.mlp.up_proj"
    want = (tensors[f"{stem}.weight"].float() * tensors[f"{stem}.weight_scale"]).bfloat16()
    assert torch.equal(whole.layers[0].mlp.up_proj.weight, want)
    assert sum(isinstance(m, ScaledLinear) for m in lent.modules()) == 14
    one, two = (model(input_ids=torch.arange(40)[None]).last_hidden_state for model in (whole, lent))
    assert torch.equal(one, two)


@pytest.mark.parametrize("storage", [None, "fp8"])
@pytest.mark.parametrize("rows", [False, True])
def test_an_fp8_transformer_is_made_whole_layer_by_layer(base: Path, tmp_path: Path, storage: Any, rows: bool) -> None:
    """So that a run that stores it small never has it whole in RAM; it has the same numbers, fused layers and all."""
    tensors = in_fp8(load_file(base), ("qkv.weight", "linear1.weight", "mlp.2.weight", "img_in.weight"), rows=rows)
    save_file(tensors, tmp_path / "fp8.safetensors")
    models = [FILES.load(tmp_path / "fp8.safetensors", torch.bfloat16, lent=lent) for lent in (False, True)]
    assert sum(isinstance(m, ScaledLinear) for m in models[1].modules()) == 11
    for model in models:
        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        place(model, MemoryOptions(storage=storage), torch.device("cpu"), torch.bfloat16, blocks)
    assert not any(isinstance(m, ScaledLinear) for m in models[1].modules())
    flow_checks.same(models[0].state_dict(), models[1].state_dict())


# --- LoRA files -------------------------------------------------------------------------------------------------------


def test_diffusers_draws_with_the_file_what_we_draw(family: Any, theirs: Flux2Pipeline, tmp_path: Path) -> None:
    weights = flow_checks.lora_of(FACTS, tiny_flux2_dev.models().transformer)
    flow_checks.save_own(FACTS, weights, tmp_path / "lora.safetensors")
    flow_checks.drawn_with(CASE, family, theirs, weights, tmp_path / "lora.safetensors")


def test_comfyui_finds_every_layer_of_our_file(base: Path) -> None:
    """By the same names as klein's, in a table by hand."""
    weights = flow_checks.lora_of(FACTS, tiny_flux2_dev.models().transformer)
    form = dialects.own_form(weights, FACTS.names(), torch.float32)
    stems = {key.removesuffix(".lora_A.weight") for key in form.tensors if key.endswith(".lora_A.weight")}
    assert {stem for stem in stems if not stem.startswith(NEW)} <= comfy_names().keys()
    assert len(stems) == len(weights) == 16 + 11
    reading = comfyui.read(form.tensors, FACTS.base(base))
    assert reading.changes.keys() == {path for path in weights if not path.startswith(NEW)}
    assert weights.keys() - reading.changes.keys() == FACTS.names().unasked


@pytest.mark.parametrize("start", ["transformer.", "diffusion_model.", "lora_unet_"])
def test_loras_of_klein_and_dev_are_told_apart(tmp_path: Path, start: str) -> None:
    """They share names: by how many blocks there are, by the sizes of the published models, by who asks."""

    def family_with(single: int, width: int, wanted: Any = None) -> str:
        native = start != "transformer."
        stem = f"single_blocks.{single}.linear2" if native else f"single_transformer_blocks.{single}.attn.to_out"
        stem = start + (stem.replace(".", "_") if start == "lora_unet_" else stem)
        up, down = torch.ones(width, 2), torch.ones(2, 4 * width)
        save(tmp_path / "lora.safetensors", {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, {})
        path = tmp_path / "lora.safetensors"
        return (read(path, wanted).family if wanted else family_of(path)).name

    assert [family_with(47, width) for width in (6144, 32)] == ["flux2_dev", "flux2_dev"]
    assert [family_with(0, width) for width in (6144, 4096, 32)] == ["flux2_dev", "flux2", "flux2"]
    assert family_with(0, 32, FACTS) == "flux2_dev" and family_with(0, 32, by_name("flux2")) == "flux2"


@pytest.mark.slow  # klein does it, too
def test_a_stored_base_and_recomputed_blocks_train(data: Path, tmp_path: Path) -> None:
    folder = tiny_flux2_dev.write_folder(tmp_path / "base")
    written = read(flow_checks.trained(folder, data, tmp_path, targets="[single]"))
    assert written.family is FACTS and len(written.weights) == 4
