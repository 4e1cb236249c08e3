"""SDXL's files: the tables against the libraries' own converters, both layouts, half and eight bits, and mistakes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tiny_xl
from lora_scripts.compute.resting import built
from lora_scripts.errors import UserError
from lora_scripts.families import table
from lora_scripts.families.sd.rows import Row
from lora_scripts.families.sdxl import check, layout, load, names, singlefile, skeleton
from lora_scripts.formats.header import read_header
from lora_scripts.workshop.checkpoint import open_checkpoint

TIME = "model.diffusion_model.time_embed.0.weight"
IN_PROJ = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
QUERY = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def models() -> tiny_xl.Models:
    return tiny_xl.models()


@pytest.fixture(scope="module")
def tensors(models: tiny_xl.Models) -> State:
    return models.tensors()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_xl.write_base(tmp_path_factory.mktemp("xl") / "xl.safetensors")


def loaded(path: Path, vae: Path | None = None, dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    parts = load.load_parts(path, vae, dtype)
    return [built(part) for part in (parts.unet, parts.vae, parts.text, parts.text_2)]


def same(left: nn.Module, right: nn.Module, through: torch.dtype = torch.float32) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k].float(), b[k].to(through).float()) for k in a)


def equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@contextlib.contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(UserError) as caught:
        yield
    assert words in str(caught.value), str(caught.value)


def written(path: Path, tensors: State, **metadata: str) -> Path:
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata)
    return path


def test_published_names_and_sizes() -> None:
    """A few rows of sd_xl_base_1.0.safetensors, and its 2513 tensors of 3.5 billion parameters."""
    parts = layout.parts(layout.STANDARD)
    keys = [len({row.ldm for row in rows}) for rows in parts.values()]
    assert keys == [1680, 196, 389, 248]
    numel = [sum(torch.Size(row.shape).numel() for row in rows) for rows in parts.values()]
    assert numel == [2_567_463_684, 123_060_480, 694_659_840, 83_653_863]
    rows: dict[str, Row] = {row.ldm: row for part in parts.values() for row in part}
    deep = "model.diffusion_model.output_blocks.0.1.transformer_blocks.9.attn2.to_k.weight"
    assert rows[deep].hf == "up_blocks.0.attentions.0.transformer_blocks.9.attn2.to_k.weight"
    assert rows[deep].shape == (1280, 2048)
    assert rows["model.diffusion_model.label_emb.0.0.weight"].shape == (1280, 2816)
    assert rows["model.diffusion_model.output_blocks.2.2.conv.weight"].hf == "up_blocks.0.upsamplers.0.conv.weight"
    assert rows["model.diffusion_model.middle_block.1.proj_in.weight"].shape == (1280, 1280)
    assert rows[IN_PROJ].file_shape == (3840, 1280)


def test_the_libraries_read_our_file_the_same(models: tiny_xl.Models, tensors: State) -> None:
    unet = convert_ldm_unet_checkpoint(dict(tensors), models.unet.config)
    assert equal(unet, models.unet.state_dict())
    assert equal(convert_ldm_vae_checkpoint(dict(tensors), models.vae.config), models.vae.state_dict())
    text = convert_ldm_clip_checkpoint(dict(tensors), remove_prefix="conditioner.embedders.0.transformer.")
    own = {key.removeprefix("text_model."): value for key, value in models.text.state_dict().items()}
    assert equal({key.removeprefix("text_model."): value for key, value in text.items()}, own)
    text_2 = convert_open_clip_checkpoint(models.text_2, dict(tensors), prefix="conditioner.embedders.1.model.")
    assert equal(text_2, models.text_2.state_dict())
    weight = models.text_2.text_projection.weight
    assert torch.equal(tensors["conditioner.embedders.1.model.text_projection"], weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_file_gives_the_models_and_they_give_every_tensor_back(
    dtype: torch.dtype, models: tiny_xl.Models, tensors: State, tmp_path: Path
) -> None:
    spare = {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6), "model_ema.decay": torch.tensor(0.9)}
    path = written(tmp_path / "xl.safetensors", {k: v.to(dtype) for k, v in tensors.items()} | spare)
    parts = loaded(path)
    assert all(same(a, b, through=dtype) for a, b in zip(parts, models, strict=True))
    assert {p.dtype for p in parts[0].parameters()} == {dtype}  # the caller says what it is computed in
    back = singlefile.to_ldm(*(part.state_dict() for part in parts))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key].float(), tensors[key].to(dtype).float()) for key in tensors)


def test_layout_and_configs_rebuild_the_models(base: Path, models: tiny_xl.Models, tmp_path: Path) -> None:
    told = singlefile.layout_of(read_header(base).shapes)
    assert (told.unet.widths, told.unet.depths, told.unet.heads) == ((32, 32, 64), (0, 1, 2), (1, 1, 1))
    assert (told.unet.context_width, told.unet.pooled_width, told.unet.size_width) == (40, 24, 8)
    assert (told.text.width, told.text_2.width, told.text_2.projection, told.text_2.layers) == (16, 24, 24, 3)
    unet, vae, text, text_2 = loaded(base)
    assert text_2.config.hidden_act == "gelu" and text.config.hidden_act == "quick_gelu"
    assert vae.config.scaling_factor == 0.13025
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([5, 900])
    more = {"text_embeds": torch.randn(2, 24), "time_ids": torch.arange(12.0).view(2, 6)}
    ids = torch.tensor([[49406, 320, 2368, 49407, *[0] * 73]])
    with torch.no_grad():
        ours = unet.eval()(x, t, torch.ones(2, 77, 40), more)
        theirs = models.unet(x, t, torch.ones(2, 77, 40), added_cond_kwargs=more).sample
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # by other kernels
        one, two = text_2.eval()(ids), models.text_2(ids)
        assert torch.equal(one.text_embeds, two.text_embeds)
    folder = skeleton.layout_of(tiny_xl.write_folder(tmp_path / "folder"))
    assert folder == skeleton.layout_of(base)


def test_a_diffusers_folder_is_the_same_as_the_file(models: tiny_xl.Models, tmp_path: Path) -> None:
    folder = tiny_xl.write_folder(tmp_path / "folder")
    parts = load.load_parts(folder, None, torch.float32)
    assert all(same(a, b) for a, b in zip((parts.unet, parts.vae, parts.text, parts.text_2), models, strict=True))
    assert parts.native_size == (64, 64)
    assert table.identify(folder) is check.CHECKPOINT
    (folder / "text_encoder_2" / "config.json").rename(tmp_path / "config.json")
    with refused("this folder has no text_encoder_2/config.json; give a diffusers folder of SDXL"):
        check.check(folder, True)


def scaled(tensors: State, scale: Callable[[Tensor], Tensor], name: str, **beside: Tensor) -> tuple[State, State]:
    """(an fp8_scaled file, the numbers that it stands for): the linear layers of both text encoders and the UNet."""
    file, meant = dict(tensors), dict(tensors)
    for key, weight in tensors.items():
        if key.endswith(".weight") and weight.dim() == 2 and "embed" not in key.rsplit(".", 2)[1]:
            by = scale(weight)
            codes = (weight / by.view(-1, 1)).to(torch.float8_e4m3fn)
            stem = key.removesuffix(".weight")
            file |= {key: codes, f"{stem}.{name}": by} | {f"{stem}.{k}": v for k, v in beside.items()}
            meant[key] = codes.float() * by.view(-1, 1)
    return file, meant


def test_fp8_scaled_files_of_either_age(tensors: State, tmp_path: Path) -> None:
    """ComfyUI's: scale_weight with a marker, one number a weight; weight_scale with a word on the format, one a row."""
    word = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    ages = (
        (lambda w: w.abs().max() / 448, "scale_weight", {"scale_input": torch.tensor(1.0)}),
        (lambda w: w.abs().amax(1, keepdim=True) / 448, "weight_scale", {"comfy_quant": word}),
    )
    for number, (scale, name, beside) in enumerate(ages):
        file, meant = scaled(tensors, scale, name, **beside)
        marker = {"model.diffusion_model.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
        path = written(tmp_path / f"{number}.safetensors", file | marker)
        check.check(path, True)
        back = singlefile.to_ldm(*(part.state_dict() for part in loaded(path)))
        assert equal({k: v.float() for k, v in back.items()}, {k: v.float() for k, v in meant.items()})
        assert (meant[QUERY] - tensors[QUERY]).abs().max() < 0.04 * tensors[QUERY].abs().max()
        half = loaded(path, dtype=torch.bfloat16)[0].state_dict()[
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
        ]
        assert torch.equal(half, meant[QUERY].bfloat16())


def test_nothing_is_merged_into_scaled_weights(tensors: State, tmp_path: Path) -> None:
    file, _ = scaled(tensors, lambda w: w.abs().max() / 448, "scale_weight")
    path = written(tmp_path / "fp8.safetensors", file)
    with refused("weights have a scale beside them (fp8_scaled, int8), first conditioner."):
        open_checkpoint(path)


def test_what_eight_bits_are_not_read(tensors: State, tmp_path: Path) -> None:
    stem = QUERY.removesuffix(".weight")
    blocks = {QUERY: tensors[QUERY].to(torch.float8_e4m3fn), f"{stem}.weight_scale": torch.ones(32, 2)}
    with refused("weight_scale has shape [32, 2]: neither one scale for the weight nor one for each of its rows"):
        check.check(written(tmp_path / "mx.safetensors", tensors | blocks), True)
    codes = {QUERY: torch.zeros(32, 32, dtype=torch.int8), f"{stem}.weight_scale": torch.ones(())}
    with refused(f"1 tensors are not floating point, first {QUERY} (I8); this is a quantised file"):
        check.check(written(tmp_path / "int8.safetensors", tensors | codes), True)


FAULTS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda ldm: ldm.pop(TIME), "tensors of the UNet are missing: " + TIME),
    "fused": (lambda ldm: ldm.pop(IN_PROJ), f"1 of 41 tensors of the second text encoder are missing: {IN_PROJ}"),
    "unknown": (
        lambda ldm: ldm.update({"model.diffusion_model.extra": torch.zeros(1)}),
        "1 unknown tensors, first model.diffusion_model.extra; this is not a plain SDXL model",
    ),
    "shape": (lambda ldm: ldm.update({IN_PROJ: torch.zeros(72, 23)}), IN_PROJ + " has shape [72, 23], not [72, 24]"),
    "widths": (
        lambda ldm: ldm.update({k: torch.zeros(64, 48) for k in list(ldm) if "middle" in k and "attn2.to_k" in k}),
        "the UNet reads text of width 48, the two text encoders give 40",
    ),
    "no text": (
        lambda ldm: [ldm.pop(k) for k in list(ldm) if k.startswith("conditioner.")],
        "the file holds no first text encoder and no second text encoder; give the full checkpoint",
    ),
    "no vae": (
        lambda ldm: [ldm.pop(k) for k in list(ldm) if k.startswith("first_stage_model.")],
        "the file holds no VAE; give the full checkpoint, or the file of a VAE as vae",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_told_from_its_header(fault: str, tensors: State, tmp_path: Path) -> None:
    change, words = FAULTS[fault]
    ldm = dict(tensors)
    change(ldm)
    path = written(tmp_path / "bad.safetensors", ldm)
    assert table.identify(path) is check.CHECKPOINT
    with refused(words):
        check.check(path, True)
    with refused(words):
        load.load_parts(path, None, torch.float32)


ZERO = torch.zeros(0)
KINDS: dict[str, tuple[State, dict[str, str], str]] = {
    "refiner": ({"conditioner.embedders.0.model.ln_final.bias": ZERO}, {}, "this is an SDXL refiner; give"),
    "turbo": ({}, {"modelspec.title": "SDXL_Turbo 1.0"}, "this is an SDXL distilled to few steps"),
    "lightning": ({}, {"modelspec.architecture": "sdxl-lightning"}, "this is an SDXL distilled to few steps"),
    "edm": ({"edm_mean": ZERO}, {}, "this is an SDXL with the EDM noise schedule"),
    "cosxl": ({"edm_vpred.sigma_max": ZERO}, {}, "this is an SDXL with the EDM noise schedule"),
    "inpainting": ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, {}, "inpainting"),
    "lora": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": ZERO}, {}, "this is a LoRA; give it as init_lora"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_base_is_named_in_one_line(kind: str, tensors: State, tmp_path: Path) -> None:
    more, metadata, words = KINDS[kind]
    path = written(tmp_path / "other.safetensors", tensors | more, **metadata)
    found = table.identify(path)
    assert found is not check.CHECKPOINT
    with refused(words):
        table.refuse(found, path)


def test_what_a_base_answers_with(tensors: State, tmp_path: Path) -> None:
    def told(more: State, **metadata: str) -> dict[str, object]:
        path = written(tmp_path / "a.safetensors", {TIME: tensors[TIME]} | more, **metadata)
        return dict(table.by_name("sdxl").told(path))

    epsilon = {"prediction": "epsilon", "zero_terminal_snr": False}
    v, zero = epsilon | {"prediction": "v"}, {"prediction": "v", "zero_terminal_snr": True}
    assert told({}) == epsilon and told({"v_pred": ZERO}) == v and told({"v_pred": ZERO, "ztsnr": ZERO}) == zero
    assert told({}, **{"modelspec.prediction_type": "epsilon"}) == epsilon
    assert told({}, **{"modelspec.prediction_type": "v"}) == v
    folder = tmp_path / "folder" / "scheduler"
    folder.mkdir(parents=True)
    for settings, answer in (
        ({"prediction_type": "epsilon"}, epsilon),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, zero),
        ({}, epsilon),
    ):
        (folder / "scheduler_config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert table.by_name("sdxl").told(tmp_path / "folder") == answer


def test_a_base_with_v_pred_keys_is_whole(tmp_path: Path) -> None:
    check.check(tiny_xl.write_base(tmp_path / "v.safetensors", v_pred=ZERO, ztsnr=ZERO), True)


def test_a_vae_of_its_own_must_make_the_latents_of_the_base(base: Path, models: tiny_xl.Models, tmp_path: Path) -> None:
    """One that is mended (its numbers a little off) is taken; one of another model, of the same shape, is not."""
    state = models.vae.state_dict()
    g = torch.Generator().manual_seed(0)
    mended = {k: v + 0.02 * v.abs().mean() * torch.randn(v.shape, generator=g) for k, v in state.items()}
    one = written(tmp_path / "mended.safetensors", mended)
    (tmp_path / "folder").mkdir()
    models.vae.save_pretrained(tmp_path / "folder")
    for path in (one, tmp_path / "folder"):
        assert built(load.load_parts(base, path, torch.float32).vae).config.scaling_factor == 0.13025
    other = written(tmp_path / "other.safetensors", tiny_xl.models(seed=3).vae.state_dict())
    with refused("this VAE makes other latents than the base's own: it is of another model; give a VAE of SDXL"):
        load.load_parts(base, other, torch.float32)
    without = {k: v for k, v in load_file(base).items() if not k.startswith("first_stage_model.")}
    load.load_parts(written(tmp_path / "without.safetensors", without), other, torch.float32)  # nothing to compare
    config = json.loads((tmp_path / "folder" / "config.json").read_text("utf-8"))
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.18215}), "utf-8")
    with refused("this VAE scales latents by 0.18215, SDXL's by 0.13025"):
        check.check_vae(tmp_path / "folder")


def test_layers_and_their_names(base: Path) -> None:
    facts = table.by_name("sdxl")
    layers = {layer.path: layer for layer in facts.base(base).layers}
    query = layers["text_encoder_2.encoder.layers.1.self_attn.k_proj"]
    assert query.kohya == "lora_te2_text_model_encoder_layers_1_self_attn_k_proj" and query.shape == (24, 24)
    deep = layers["unet.down_blocks.2.attentions.1.transformer_blocks.1.ff.net.0.proj"]
    assert deep.kohya == "lora_unet_input_blocks_8_1_transformer_blocks_1_ff_net_0_proj" and deep.shape == (512, 64)
    assert layers["unet.add_embedding.linear_1"].kohya == "" and layers["text_encoder_2.text_projection"].kohya == ""
    known = {path for path, layer in layers.items() if layer.kohya}
    assert known <= names.sdxl().kohya.keys()
    built = facts.build(base)
    real = {
        f"{part}.{name.removeprefix('text_model.')}": tuple(module.weight.shape)
        for part, model in built.items()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert {path: layer.shape for path, layer in layers.items()} == real
    with safe_open(base, "pt") as handle:
        for path, weight in facts.weights(read_header(base), base).items():
            shape = handle.get_slice(weight.key).get_shape()
            assert (shape if weight.share is None else [shape[0] // 3, *shape[1:]]) in (
                list(real[path]),
                list(real[path])[::-1],
            )


def test_blocks(base: Path) -> None:
    groups = table.by_name("sdxl").groups
    assert groups["IN04"]("unet.down_blocks.1.attentions.0.proj_in") and groups["MID"]("unet.mid_block.resnets.0.conv1")
    assert groups["OUT05"]("unet.up_blocks.1.upsamplers.0.conv") and not groups["IN05"](
        "unet.up_blocks.1.resnets.0.conv1"
    )
    paths = [layer.path for layer in table.by_name("sdxl").base(base).layers if layer.kohya and layer.unet]
    inside = [name for name in groups if name.isupper() and any(groups[name](path) for path in paths)]
    assert len(inside) == 8 + 1 + 9 and "IN09" not in groups
