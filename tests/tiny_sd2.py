"""A Stable Diffusion 2.x of the true topology with random weights, small enough to train in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from lora_scripts.families.sd1 import singlefile


class Models(NamedTuple):
    """The three parts, built by the libraries themselves."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel

    def tensors(self) -> dict[str, torch.Tensor]:
        """In the published single-file layout."""
        return singlefile.to_ldm(*(part.state_dict() for part in self))


def models(seed: int = 0) -> Models:
    """Widths 32, 32, 64 and 128, of which the last has two heads; a text encoder of width 16 and two layers."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 128),
        layers_per_block=2,
        attention_head_dim=(1, 1, 1, 2),
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.18215,
    )
    config = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act="gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,  # as published, and as wrong there: chunks are filled up with 0
    )
    return Models(unet.eval(), vae.eval(), CLIPTextModel(config).eval())


def write_base(path: Path, seed: int = 0, **more: torch.Tensor) -> Path:
    """The model as one file in the published layout, with `more` tensors such as v_pred."""
    save_file(models(seed).tensors() | more, path, {"modelspec.resolution": "64x64"})
    return path


def write_folder(path: Path, seed: int = 0, **scheduler: object) -> Path:
    """The same model as a diffusers folder, without a tokenizer."""
    for name, part in zip(("unet", "vae", "text_encoder"), models(seed), strict=True):
        part.save_pretrained(path / name)
    settings = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", **scheduler}
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path
