"""The tables against diffusers' own converters, and against the keys of the built models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import tiny
import tiny_sd2
from lora_scripts.compute.resting import built
from lora_scripts.errors import UserError
from lora_scripts.families.sd.rows import Handle
from lora_scripts.families.sd.text import text_keys_like
from lora_scripts.families.sd.vae import vae_rows
from lora_scripts.families.sd1 import check, singlefile
from lora_scripts.families.sd1.layout import Sd1Layout, text_config, text_rows, unet_config, unet_rows, vae_config
from lora_scripts.families.sd1.load import load_parts

WIDE = Sd1Layout((320, 640, 1280, 1280), 768, 4, 4, (128, 256, 512, 512), 4, 768, 12, 3072, 49408, 77)
Q = "first_stage_model.encoder.mid.attn_1.q.weight"
TIME = "model.diffusion_model.time_embed.0.weight"


class Models:
    """A narrow Stable Diffusion 1.x with random weights, built by the libraries themselves."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64, 96),
            layers_per_block=2,
            cross_attention_dim=64,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
        self.vae = AutoencoderKL(
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        config = CLIPTextConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1)
        self.text = CLIPTextModel(config)
        parts = (self.unet, self.vae, self.text)
        self.unet_sd, self.vae_sd, self.text_sd = (part.state_dict() for part in parts)
        self.ldm = singlefile.to_ldm(self.unet_sd, self.vae_sd, self.text_sd)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@contextlib.contextmanager
def opened(tensors: dict[str, torch.Tensor], folder: Path) -> Iterator[Handle]:
    path = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    with safe_open(path, framework="pt") as handle:
        yield handle


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_diffusers_reads_our_checkpoint_the_same(models: Models) -> None:
    unet = convert_ldm_unet_checkpoint(dict(models.ldm), models.unet.config)
    vae = convert_ldm_vae_checkpoint(dict(models.ldm), models.vae.config)
    text = convert_ldm_clip_checkpoint(dict(models.ldm))
    assert equal(unet, models.unet_sd)
    assert equal(vae, models.vae_sd)
    text = {key.removeprefix("text_model."): value for key, value in text.items()}
    assert equal(text, {key.removeprefix("text_model."): value for key, value in models.text_sd.items()})


def test_published_names_and_shapes() -> None:
    """A few rows of v1-5-pruned.safetensors, as published; and how many parameters it has."""
    rows = {row.ldm: row for row in unet_rows(WIDE) + text_rows(WIDE)}
    rows |= {row.ldm: row for row in vae_rows(WIDE.vae_widths, 4)}
    assert rows["model.diffusion_model.output_blocks.2.1.conv.weight"].hf == "up_blocks.0.upsamplers.0.conv.weight"
    assert rows["model.diffusion_model.output_blocks.5.2.conv.weight"].shape == (1280, 1280, 3, 3)
    assert rows["model.diffusion_model.output_blocks.8.0.in_layers.2.weight"].shape == (640, 960, 3, 3)
    assert rows["model.diffusion_model.input_blocks.4.1.transformer_blocks.0.ff.net.0.proj.weight"].shape == (5120, 640)
    assert rows["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)
    assert rows[Q].hf == "encoder.mid_block.attentions.0.to_q.weight"
    # 686, 248 and 196 tensors; 859,520,964, 83,653,863 and 123,060,480 parameters: the published sizes of SD 1.x
    parts = (unet_rows(WIDE), vae_rows(WIDE.vae_widths, 4), text_rows(WIDE))
    assert [len(part) for part in parts] == [686, 248, 196]
    numel = [sum(torch.Size(row.shape).numel() for row in part) for part in parts]
    assert numel == [859_520_964, 83_653_863, 123_060_480]


def test_layout_and_configs_rebuild_the_models(models: Models, tmp_path: Path) -> None:
    layout = singlefile.layout_of(shapes(models.ldm))
    assert layout.unet_widths == (32, 64, 64, 96) and layout.vae_widths == (32, 32, 64, 64)
    assert (layout.text_width, layout.text_layers, layout.text_intermediate, layout.vocab) == (64, 2, 256, 49408)
    with opened(models.ldm, tmp_path) as handle:
        unet_sd, vae_sd, text_sd = singlefile.from_ldm(handle, layout)
        unet = UNet2DConditionModel(**unet_config(layout))
        vae = AutoencoderKL(**vae_config(layout))
        text = CLIPTextModel(CLIPTextConfig(**text_config(layout)))
        unet.load_state_dict(unet_sd)
        vae.load_state_dict(vae_sd)
        text.load_state_dict(text_keys_like(text_sd, text.state_dict()))
    assert equal(unet.state_dict(), models.unet_sd)
    assert equal(vae.state_dict(), models.vae_sd)
    assert equal(text.state_dict(), models.text_sd)
    assert text.config.num_attention_heads == 1 and text.config.hidden_act == "quick_gelu"
    assert (text.config.bos_token_id, text.config.eos_token_id, text.config.pad_token_id) == (49406, 49407, 49407)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 64)
    with torch.no_grad():
        for model in (unet, models.unet):
            model.eval()
        assert torch.equal(unet(x, t, context).sample, models.unet(x, t, context).sample)


def test_text_keys_with_and_without_prefix() -> None:
    text = {"text_model.final_layer_norm.bias": torch.zeros(1)}
    assert list(text_keys_like(text, ["final_layer_norm.bias"])) == ["final_layer_norm.bias"]
    assert list(text_keys_like(text, ["text_model.final_layer_norm.bias"])) == list(text)


def test_tolerated_extras_are_ignored(models: Models, tmp_path: Path) -> None:
    extras = {
        "model_ema.diffusion_modeltime_embed0weight": torch.full((2, 2), 9.0),
        "model_ema.decay": torch.tensor(0.9999),
        "betas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.zeros(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.tensor(1.0),
    }
    layout = singlefile.layout_of(shapes(models.ldm))
    with opened(models.ldm | extras, tmp_path) as handle:
        unet_sd, vae_sd, text_sd = singlefile.from_ldm(handle, layout)
        assert equal(unet_sd, models.unet_sd) and equal(vae_sd, models.vae_sd) and len(text_sd) == len(models.text_sd)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ldm: ldm.pop(TIME), "1 of 686 tensors of the UNet are missing: " + TIME),
        (
            lambda ldm: ldm.update({"model.diffusion_model.extra": torch.zeros(1)}),
            "1 unknown tensors, first model.diff",
        ),
        (lambda ldm: ldm.update({TIME: torch.zeros(128, 33)}), TIME + " has shape [128, 33], not [128, 32]"),
        (
            lambda ldm: ldm.update({Q.replace(".q.", ".to_q."): ldm[Q] + 1}),
            "1 unknown tensors, first first_stage_model.",
        ),
    ],
)
def test_a_faulty_checkpoint_is_told(models: Models, tmp_path: Path, change: object, words: str) -> None:
    ldm = dict(models.ldm)
    change(ldm)  # type: ignore[operator]
    layout = singlefile.layout_of(shapes(models.ldm))
    with opened(ldm, tmp_path) as handle, pytest.raises(UserError) as caught:
        singlefile.from_ldm(handle, layout, file=Path("base.safetensors"))
    assert words in str(caught.value) and str(caught.value).startswith("base.safetensors: ")


@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_a_missing_part_is_named(models: Models, part: str) -> None:
    rest = {key: shape for key, shape in shapes(models.ldm).items() if not key.startswith(part)}
    name = {"m": "UNet", "f": "VAE", "c": "text encoder"}[part[0]]
    with pytest.raises(UserError, match=f"holds no {name}"):
        singlefile.layout_of(rest)
    if name == "VAE":
        layout = singlefile.layout_of(rest, vae=False)
        assert layout.vae_widths == ()
        singlefile.check(rest, layout)


def test_every_spelling_of_the_vae_attention(models: Models, tmp_path: Path) -> None:
    """1 x 1 convolutions or matrices; LDM's leaves or diffusers'; alone or in a checkpoint; old and new names."""
    leaves = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}

    def respelt(key: str) -> str:
        for old, new in leaves.items():
            key = key.replace(f".mid.attn_1.{old}.", f".mid.attn_1.{new}.")
        return key

    ldm = {key: value for key, value in models.ldm.items() if key.startswith("first_stage_model.")}
    matrices = {
        key: value[:, :, 0, 0] if ".attn_1." in key and value.ndim == 4 else value for key, value in ldm.items()
    }
    alone = {key.removeprefix("first_stage_model."): value for key, value in ldm.items()} | {
        "loss.logvar": torch.zeros(1)
    }
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(models.vae_sd)
    for new_leaf, old_leaf in names.items():
        pick = [key for key in old if f".attentions.0.{new_leaf}." in key]
        old |= {key.replace(f".{new_leaf}.", f".{old_leaf}."): old.pop(key) for key in pick}
    spellings = [models.ldm, matrices, {respelt(k): v for k, v in matrices.items()}, alone, models.vae_sd, old]
    for tensors in spellings:
        with opened(tensors, tmp_path) as handle:
            widths, vae_sd = singlefile.vae_from(handle, shapes(tensors))
            assert widths == (32, 32, 64, 64) and equal(vae_sd, models.vae_sd)
    layout = singlefile.layout_of(shapes(models.ldm))
    with opened({respelt(k): v for k, v in (models.ldm | matrices).items()}, tmp_path) as handle:
        assert equal(singlefile.from_ldm(handle, layout)[1], models.vae_sd)


def test_to_ldm_takes_only_whole_models(models: Models) -> None:
    with pytest.raises(ValueError, match="1 keys missing or unknown, first conv_in"):
        singlefile.to_ldm(
            {k: v for k, v in models.unet_sd.items() if k != "conv_in.bias"}, models.vae_sd, models.text_sd
        )
    turned = models.vae_sd | {"quant_conv.weight": models.vae_sd["quant_conv.weight"].reshape(1, 64)}
    with pytest.raises(ValueError, match="weight has shape"):
        singlefile.to_ldm(models.unet_sd, turned, models.text_sd)


@pytest.mark.parametrize("made", [tiny, tiny_sd2], ids=["1.x", "2.x"])
def test_fp8_scaled_files_of_either_age_and_int8(made: ModuleType, tmp_path: Path) -> None:
    """A number a weight as scale_weight, or one a row as weight_scale: what is loaded is codes times scales."""
    tensors = load_file(made.write_base(tmp_path / "base.safetensors"))
    linear = [k for k, w in tensors.items() if k.endswith(".weight") and w.dim() == 2 and "embedding." not in k]
    linear = [key for key in linear if key.startswith(("model.diffusion_model.", "cond_stage_model."))]
    assert any("attn1" in key for key in linear) and any(key.startswith("cond_stage_model.") for key in linear)
    for name, axis in (("scale_weight", (0, 1)), ("weight_scale", (1,))):
        file, meant, mixed = dict(tensors), dict(tensors), dict(tensors)
        for key in linear:
            scale = tensors[key].abs().amax(axis, keepdim=True) / 448
            beside = key.removesuffix("weight") + name
            file |= {
                key: (tensors[key] / scale).to(torch.float8_e4m3fn),
                beside: scale if len(axis) == 1 else scale.squeeze(),
            }
            meant[key] = file[key].float() * scale
            mixed |= {key: torch.ones_like(tensors[key]).to(torch.int8), beside: file[beside]}
        paths = {kind: tmp_path / f"{kind}.safetensors" for kind in ("file", "meant", "mixed")}
        for kind, held in (("file", file), ("meant", meant), ("mixed", mixed)):
            save_file({key: value.contiguous() for key, value in held.items()}, paths[kind])
        check.check(paths["file"], True)
        one, two = (load_parts(paths[kind], None) for kind in ("file", "meant"))
        for ours, want in ((one.unet, two.unet), (built(one.text), built(two.text))):
            assert equal({k: v.float() for k, v in ours.state_dict().items()}, want.state_dict())
        with pytest.raises(UserError, match="tensors are not floating point"):
            check.check(paths["mixed"], True)
