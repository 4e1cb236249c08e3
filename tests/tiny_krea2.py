"""Krea 2 of the true topology with random weights, small enough to train in a test: each part as its library builds it,
and as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLModel

from small_words import tokenizer
from tiny_flow import SIGNS, Models, write_parts, write_transformer
from tiny_qwen import autoencoder, sized, write_vae

SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 6400,
    "time_shift_type": "exponential",
}
"""As published."""
LAYERS, TAPS, WIDTH = 4, (1, 3), 32
"""Of the text encoder: as many, two of them tapped as evenly as the published twelve of 36, and its width."""


def language(seed: int = 0, layers: int = LAYERS, width: int = WIDTH, more: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """A Qwen3-VL, vision tower and all, and a tokenizer for it, which knows `more` signs."""
    torch.manual_seed(seed)
    tok = tokenizer((*SIGNS, *more), eos="<|endoftext|>")
    tok.pad_token = "<|endoftext|>"
    tok.padding_side = "right"
    text = {
        "vocab_size": len(tok),
        "hidden_size": width,
        "intermediate_size": 40,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": width}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)).eval(), tok


@cache
def models(seed: int = 0) -> Models:
    """Two blocks of width 64 with heads of 16, two of which share their keys; none of its norms is as it begins.
    Nothing changes it, so it is made once."""
    torch.manual_seed(seed)
    transformer = Krea2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        timestep_embed_dim=32,
        text_hidden_dim=WIDTH,
        num_text_layers=len(TAPS),
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=48,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    for name, parameter in transformer.named_parameters():
        if "norm" in name or "table" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif parameter.dim() == 2:  # so that texts make a difference that can be seen
            parameter.data *= 2
    return Models(transformer, autoencoder(seed), *language(seed))


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As published."""
    return FlowMatchEulerDiscreteScheduler(**SCHEDULER)


# --- files ------------------------------------------------------------------------------------------------------------


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors in the names of Krea's own code, written by hand."""
    parts = {
        "img_in.": "first.",
        "time_embed.linear_1.": "tmlp.0.",
        "time_embed.linear_2.": "tmlp.2.",
        "time_mod_proj.": "tproj.1.",
        "txt_in.norm.weight": "txtmlp.0.scale",
        "txt_in.linear_1.": "txtmlp.1.",
        "txt_in.linear_2.": "txtmlp.3.",
        "text_fusion.": "txtfusion.",
        "transformer_blocks.": "blocks.",
        "final_layer.linear.": "last.linear.",
        "final_layer.norm.weight": "last.norm.scale",
        "final_layer.scale_shift_table": "last.modulation.lin",
    }
    inside = {
        ".attn.to_q.": ".attn.wq.",
        ".attn.to_k.": ".attn.wk.",
        ".attn.to_v.": ".attn.wv.",
        ".attn.to_out.0.": ".attn.wo.",
        ".attn.to_gate.": ".attn.gate.",
        ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
        ".attn.norm_k.weight": ".attn.qknorm.knorm.scale",
        ".ff.": ".mlp.",
        ".norm1.weight": ".prenorm.scale",
        ".norm2.weight": ".postnorm.scale",
        ".scale_shift_table": ".mod.lin",
    }
    tensors = {}
    for key, value in state.items():
        old = next(start for start in parts if key.startswith(start))
        name = parts[old] + key.removeprefix(old)
        for one, other in inside.items():
            name = name.replace(one, other)
        tensors[name] = value.flatten() if name.endswith(".mod.lin") else value
    return tensors


def write_base(path: Path, seed: int = 0, prefix: str = "") -> Path:
    """The transformer as one file in the published layout; text encoder and VAE beside it, see `beside`."""
    made = models(seed)
    write_text(path.parent / "text" / "qwen3vl_4b_bf16.safetensors", made)
    write_vae(path.parent / "qwen_image_vae.safetensors", made.vae)
    return write_transformer(path, published(made.transformer.state_dict()), prefix)


def write_text(path: Path, made: Models) -> Path:
    """The text encoder as one file in ComfyUI's names, vision tower and all, its tokenizer.json beside it."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = made.text.state_dict()
    save_file({key.replace("language_model.", "model.", 1): value.contiguous() for key, value in state.items()}, path)
    made.tokenizer.backend_tokenizer.save(str(path.parent / "tokenizer.json"))
    return path


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    text, vae = folder / "text" / "qwen3vl_4b_bf16.safetensors", folder / "qwen_image_vae.safetensors"
    return {"text_encoder": [text], "vae": vae}


def write_folder(path: Path, seed: int = 0, **index: object) -> Path:
    """The same model as a diffusers folder."""
    told = {"_class_name": "Krea2Pipeline", "is_distilled": False, "text_encoder_select_layers": list(TAPS), **index}
    return sized(write_parts(path, models(seed), scheduler(), told))
