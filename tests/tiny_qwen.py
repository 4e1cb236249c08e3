"""Qwen-Image of the true topology with random weights, small enough to train in a test: each part as its library builds
it, and as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from small_words import tokenizer
from tiny_flow import SIGNS, Models, write_parts, write_transformer

SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
"""As published."""
VISION = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
WIDTH = 256
"""Of the text encoder: a file alone does not say how wide its heads are, so they are of 128 channels, as published."""


def language(seed: int = 0) -> tuple[Any, Any]:
    """A Qwen2.5-VL of two layers, vision tower and all, and a tokenizer for it."""
    torch.manual_seed(seed)
    tok = tokenizer([*SIGNS, *VISION], eos="<|endoftext|>")
    tok.pad_token = "<|endoftext|>"
    tok.padding_side = "right"
    text = {
        "vocab_size": len(tok),
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    }
    vision = {"depth": 9, "hidden_size": 160, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    begin, pad, end = (tok.convert_tokens_to_ids(sign) for sign in VISION)
    signs = {"vision_start_token_id": begin, "image_token_id": pad, "vision_end_token_id": end}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **signs)
    return Qwen2_5_VLForConditionalGeneration(config).eval(), tok


def autoencoder(seed: int = 0, **changes: Any) -> Any:
    """Of 16 channels, with two steps in time."""
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2, 4, 4], **changes).eval()
    for parameter in vae.parameters():  # what sees the frames before must count, so that leaving it out is seen
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=(parameter[0].numel()) ** -0.5)
    return vae


@cache
def models(seed: int = 0) -> Models:
    """Two blocks of width 32 with heads of 16. Nothing changes it, so it is made once."""
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 6, 8),
    ).eval()
    for parameter in transformer.parameters():  # so that texts make a difference that can be seen
        parameter.data *= 2 if parameter.dim() == 2 else 1
    return Models(transformer, autoencoder(seed), *language(seed))


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As published."""
    return FlowMatchEulerDiscreteScheduler(**SCHEDULER)


# --- files ------------------------------------------------------------------------------------------------------------


def write_base(path: Path, seed: int = 0, prefix: str = "", dtype: torch.dtype = torch.float32) -> Path:
    """The transformer as one file in ComfyUI's names, which are its own; text encoder and VAE beside it, see
    `beside`."""
    made = models(seed)
    write_text(path.parent / "text" / "qwen_2.5_vl_7b.safetensors", made)
    write_vae(path.parent / "qwen_image_vae.safetensors", made.vae)
    return write_transformer(path, {k: v.to(dtype) for k, v in made.transformer.state_dict().items()}, prefix)


def write_text(path: Path, made: Models) -> Path:
    """The text encoder as one file in the names of its publisher, vision tower and all, its tokenizer.json beside
    it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"model.language_model.": "model.", "model.visual.": "visual."}
    tensors = {}
    for key, value in made.text.state_dict().items():
        start = next((old for old in own if key.startswith(old)), "")
        tensors[own.get(start, "") + key.removeprefix(start)] = value.contiguous()
    save_file(tensors, path)
    made.tokenizer.backend_tokenizer.save(str(path.parent / "tokenizer.json"))
    return path


def write_vae(path: Path, vae: Any) -> Path:
    """In Wan's names, as ComfyUI has it."""
    from lora_scripts.families.flow.film import FilmLayout, rows
    from lora_scripts.families.sd.rows import to_rows

    base, latents = vae.config.base_dim, vae.config.z_dim
    layout = FilmLayout(base, tuple(base * n for n in vae.config.dim_mult), latents)
    tensors = to_rows(rows(layout), vae.state_dict())
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    text, vae = folder / "text" / "qwen_2.5_vl_7b.safetensors", folder / "qwen_image_vae.safetensors"
    return {"text_encoder": [text], "vae": vae}


def write_folder(path: Path, seed: int = 0, pipeline: str = "QwenImagePipeline") -> Path:
    """The same model as a diffusers folder."""
    return sized(write_parts(path, models(seed), scheduler(), {"_class_name": pipeline}))


def sized(folder: Path) -> Path:
    """The same, made for pictures of 64 x 64: the config of SD's VAE says so itself, that of films nothing."""
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "sample_size": 64}), encoding="utf-8")
    return folder
