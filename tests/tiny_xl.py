"""An SDXL of the true topology with random weights, small enough to train in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_scripts.families.sdxl import singlefile


class Models(NamedTuple):
    """The four parts, built by the libraries themselves."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    text_2: CLIPTextModelWithProjection

    def tensors(self) -> dict[str, torch.Tensor]:
        """In the published single-file layout."""
        return singlefile.to_ldm(*(part.state_dict() for part in self))


def models(seed: int = 0, middle: int = 2) -> Models:
    """Widths 32, 32 and 64; transformers 1 and `middle` deep; text of widths 16 and 24, pooled 24, sizes of 8 each."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, middle),
        attention_head_dim=(1, 1, 1),
        cross_attention_dim=40,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025,
    )
    one, other = (
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=1,
            hidden_act=activation,
            projection_dim=width,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=pad,
        )
        for width, activation, pad in ((16, "quick_gelu", 49407), (24, "gelu", 0))
    )
    text, text_2 = CLIPTextModel(one), CLIPTextModelWithProjection(other)
    return Models(unet.eval(), vae.eval(), text.eval(), text_2.eval())


def write_base(path: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> Path:
    """The model as one file in the published layout, with `more` tensors such as v_pred."""
    tensors = {key: value.to(dtype).contiguous() for key, value in models(seed).tensors().items()}
    save_file(tensors | more, path, {"modelspec.resolution": "64x64"})
    return path


def write_folder(path: Path, seed: int = 0, **scheduler: object) -> Path:
    """The same model as a diffusers folder, without tokenizers."""
    for name, part in zip(("unet", "vae", "text_encoder", "text_encoder_2"), models(seed), strict=True):
        part.save_pretrained(path / name)
    settings = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", **scheduler}
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings), encoding="utf-8")
    index = {"_class_name": "StableDiffusionXLPipeline"}
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path
