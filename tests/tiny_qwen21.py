"""Qwen-Image-2.1 of the true topology with random weights, small enough to train in a test: each part as its library
builds it, and as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from safetensors.torch import save_file

from tiny_flow import Models, write_parts, write_transformer
from tiny_krea2 import WIDTH, language, write_text
from tiny_qwen import SCHEDULER, sized

TEXT, VAE = "qwen3vl_8b_bf16.safetensors", "qwen_image_2.1_vae_bf16.safetensors"

PICTURE = "<|image_pad|>"
"""Which stands in a text for a picture that is seen."""


def autoencoder(seed: int = 0, **changes: Any) -> Any:
    """Of 4 channels to 64 and back."""
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage21(**{"base_dim": 4, "decoder_base_dim": 6, **changes}).eval()
    for parameter in vae.parameters():
        if parameter.dim() > 1 and len(parameter) > 1 and parameter[0].numel() > 1:
            torch.nn.init.normal_(parameter, std=(parameter[0].numel()) ** -0.5)
    return vae


@cache
def models(seed: int = 0) -> Models:
    """Two blocks of width 32 with heads of 16; none of its norms is as it begins. Nothing changes it, so it is made
    once."""
    torch.manual_seed(seed)
    transformer = QwenImage21Transformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(2, 6, 8),
    ).eval()
    for name, parameter in transformer.named_parameters():
        if "norm" in name and parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
        elif parameter.dim() == 2:  # so that texts make a difference that can be seen
            parameter.data *= 2
    return Models(transformer, autoencoder(seed), *language(seed, layers=2, more=(PICTURE,)))


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As published, that of Qwen-Image."""
    return FlowMatchEulerDiscreteScheduler(**SCHEDULER)


# --- files ------------------------------------------------------------------------------------------------------------


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors as ComfyUI has them, written by hand: gate and up of an MLP are one."""
    tensors = {key: value for key, value in state.items() if ".gate_layer." not in key and ".img_mlp.proj." not in key}
    for key, value in state.items():
        if ".gate_layer." in key:
            up = state[key.replace("gate_layer", "proj")]
            tensors[key.replace("gate_layer", "gate_up")] = torch.cat([value, up])
    return tensors


def write_base(path: Path, seed: int = 0, prefix: str = "model.diffusion_model.") -> Path:
    """The transformer as one file as ComfyUI has it; text encoder and VAE beside it, see `beside`."""
    made = models(seed)
    write_text(path.parent / "text" / TEXT, made)
    write_vae(path.parent / VAE, made.vae)
    return write_transformer(path, published(made.transformer.state_dict()), prefix)


_PARTS = {
    "encoder.conv_in.": "encoder.conv1.",
    "decoder.conv_in.": "decoder.conv1.",
    "post_quant_conv.": "conv2.",
    "quant_conv.": "conv1.",
    ".norm_out.": ".head.0.",
    ".conv_out.": ".head.2.",
    ".mid_block.resnets.0.": ".middle.0.",
    ".mid_block.attentions.0.": ".middle.1.",
    ".mid_block.resnets.1.": ".middle.2.",
    ".conv_shortcut.": ".shortcut.",
}
_LEAVES = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def wan_name(key: str) -> str:
    """A tensor of diffusers' VAE in Wan2.2's names, written by hand."""
    if ".resnets." in key:
        head, leaf, last = key.rsplit(".", 2)
        key = f"{head}.{_LEAVES.get(leaf, leaf)}.{last}"
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"downsamples.\1.downsamples", key)
    key = re.sub(r"down_blocks\.(\d)\.downsampler", r"downsamples.\1.downsamples.2", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", r"upsamples.\1.upsamples", key)
    key = re.sub(r"up_blocks\.(\d)\.upsampler", r"upsamples.\1.upsamples.3", key)
    for one, other in _PARTS.items():
        key = key.replace(one, other)
    return key


def write_vae(path: Path, vae: Any) -> Path:
    """In Wan2.2's names, as ComfyUI has it: convolutions but for those to the next level and in the attention have an
    axis of time."""
    tensors = {}
    for key, value in vae.state_dict().items():
        plain = value.dim() != 4 or key.endswith("gamma") or ".resample." in key or ".attentions." in key
        tensors[wan_name(key)] = value.contiguous() if plain else value.unsqueeze(2).contiguous()
    assert len(tensors) == len(vae.state_dict())
    save_file(tensors, path)
    return path


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    return {"text_encoder": [folder / "text" / TEXT], "vae": folder / VAE}


def write_folder(path: Path, seed: int = 0, **index: object) -> Path:
    """The same model as a diffusers folder, whose tokenizer lies in `processor`."""
    sized(write_parts(path, models(seed), scheduler(), {"_class_name": "QwenImage21Pipeline", **index}))
    (path / "tokenizer").rename(path / "processor")
    return path
