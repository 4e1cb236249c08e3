"""LoRA files over the tiny base, made by hand: what the tests of conversion, inspection and proof share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import tiny
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.names import Base
from lora_scripts.families.sd1.facts import FACTS
from lora_scripts.families.sd1.layout import text_config, unet_config
from lora_scripts.families.sd1.names import sd1_base, sd1_table
from lora_scripts.formats import io
from lora_scripts.loras import kohya
from lora_scripts.loras.verify import Skeleton

BASE: Base = sd1_base(tiny.LAYOUT)
SHAPES = {layer.path: layer.shape for layer in BASE.layers}
KOHYA = sd1_table()
TRAINABLE = [path for path in SHAPES if path in KOHYA]
MID = "unet.mid_block.attentions.0.transformer_blocks.0"
FEW = [
    f"{MID}.attn1.to_q",
    f"{MID}.attn1.to_out.0",
    f"{MID}.attn2.to_k",
    f"{MID}.ff.net.2",
    "unet.mid_block.attentions.0.proj_in",
    "unet.mid_block.resnets.0.conv1",
    "unet.down_blocks.0.downsamplers.0.conv",
    "text_encoder.encoder.layers.0.self_attn.q_proj",
    "text_encoder.encoder.layers.0.self_attn.out_proj",
    "text_encoder.encoder.layers.0.mlp.fc1",
]
"""Linear, 1 x 1 and 3 x 3 layers of the UNet, attention and MLP of the text encoder."""


def _build(_: Path) -> dict[str, nn.Module]:
    """A UNet of two levels, which has all layers of FEW at their true places and shapes, and is quick to build."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = unet_config(tiny.LAYOUT) | {"block_out_channels": (32, 64), "layers_per_block": 1}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**(shape | blocks))
        text = CLIPTextModel(CLIPTextConfig(**text_config(tiny.LAYOUT)))
    return {"unet": unet.to_empty(device="cpu"), "text_encoder": text.to_empty(device="cpu")}


SMALL = Skeleton(replace(FACTS, build=_build), Path("small"), BASE)


def weights(
    paths: list[str] = FEW, rank: int = 4, alpha: float = 2.0, size: float = 0.1, seed: int = 0
) -> dict[str, LoraWeights]:
    """Random factors of the base's shapes."""
    g = torch.Generator().manual_seed(seed)
    made = {}
    for path in paths:
        shape = SHAPES[path]
        up = size * torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=g)
        made[path] = LoraWeights(size * torch.randn(rank, *shape[1:], generator=g), up, alpha)
    return made


def dense(w: LoraWeights) -> Tensor:
    """By hand: ΔW = (alpha / rank) · Σ up[:, k] · down[k], in float64, in the layer's shape."""
    up, down = w.up.double(), w.down.double()
    total = sum(up[:, k].reshape(-1, *(1,) * (down.dim() - 1)) * down[k][None] for k in range(down.shape[0]))
    assert isinstance(total, Tensor)
    return w.alpha / down.shape[0] * total


def tensors(modules: dict[str, LoraWeights], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """With kohya's names, ranks and alphas as they are."""
    return kohya.to_kohya(modules, KOHYA, dtype=dtype, mixed=True)


def write(path: Path, found: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    io.save_safetensors(path, found, metadata)
    return path
