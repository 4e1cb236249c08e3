"""Chroma of the true topology with random weights, small enough to train in a test: as its library builds it, and as
people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

import tiny_flux1
from tiny_flow import Models, write_parts, write_transformer, write_vae


def models(seed: int = 0, *, channels: int = 64) -> Models:
    """A double and two single blocks of width 64 with heads of 32; T5 and the VAE of the narrow FLUX.1."""
    torch.manual_seed(seed)
    transformer = ChromaTransformer2DModel(
        in_channels=channels,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 14, 14),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=4,
    ).eval()
    others = tiny_flux1.models(seed)
    return Models(transformer, others.vae, others.t5, others.tokenizer)


def scheduler(**more: Any) -> FlowMatchEulerDiscreteScheduler:
    """As SD.Next's copy of the published folder has it."""
    line = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, "use_dynamic_shifting": True, **line, **more})


# --- files ------------------------------------------------------------------------------------------------------------


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published names, written by hand from what diffusers' converter takes."""
    rows = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    rows |= {f"distilled_guidance_layer.{name}": f"distilled_guidance_layer.{name}" for name in ("in_proj", "out_proj")}
    rows |= {f"single_transformer_blocks.{n}.proj_out": f"single_blocks.{n}.linear2" for n in (0, 1)}
    for n in range(4):
        at = f"distilled_guidance_layer.layers.{n}"
        rows |= {f"{at}.linear_1": f"{at}.in_layer", f"{at}.linear_2": f"{at}.out_layer"}
    for stream, out, ff in (("img", "to_out.0", "ff"), ("txt", "to_add_out", "ff_context")):
        rows[f"transformer_blocks.0.attn.{out}"] = f"double_blocks.0.{stream}_attn.proj"
        rows[f"transformer_blocks.0.{ff}.net.0.proj"] = f"double_blocks.0.{stream}_mlp.0"
        rows[f"transformer_blocks.0.{ff}.net.2"] = f"double_blocks.0.{stream}_mlp.2"
    streams = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}
    tensors = {}
    for leaf in ("weight", "bias"):
        tensors |= {f"{new}.{leaf}": state[f"{old}.{leaf}"] for old, new in rows.items()}
        for stream, names in streams.items():
            parts = [state[f"transformer_blocks.0.attn.{name}.{leaf}"] for name in names]
            tensors[f"double_blocks.0.{stream}_attn.qkv.{leaf}"] = torch.cat(parts)
        for n in (0, 1):
            inside = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            parts = [state[f"single_transformer_blocks.{n}.{name}.{leaf}"] for name in inside]
            tensors[f"single_blocks.{n}.linear1.{leaf}"] = torch.cat(parts)
    for n in range(4):
        tensors[f"distilled_guidance_layer.norms.{n}.scale"] = state[f"distilled_guidance_layer.norms.{n}.weight"]
    for n in (0, 1):
        for norm in ("query", "key"):
            key = f"single_transformer_blocks.{n}.attn.norm_{norm[0]}.weight"
            tensors[f"single_blocks.{n}.norm.{norm}_norm.scale"] = state[key]
    for norm in ("query", "key"):
        for stream, added in (("img", ""), ("txt", "added_")):
            key = f"transformer_blocks.0.attn.norm_{added}{norm[0]}.weight"
            tensors[f"double_blocks.0.{stream}_attn.norm.{norm}_norm.scale"] = state[key]
    return tensors


def write_base(path: Path, seed: int = 0, prefix: str = "", **of: Any) -> Path:
    """The transformer as one file in the published names; text encoder and VAE beside it, see `beside`."""
    made = models(seed, **of)
    write_text(path.parent / "text", made)
    write_vae(path.parent / "ae.safetensors", made.vae)
    return write_transformer(path, native(made.transformer.state_dict()), prefix)


def write_text(folder: Path, made: Models) -> Path:
    """T5 as people have it, in a file, with its tokenizer.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in made.text.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(tensors, folder / "t5xxl_fp16.safetensors")
    made.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    return {"text_encoder": [folder / "text" / "t5xxl_fp16.safetensors"], "vae": folder / "ae.safetensors"}


def write_folder(path: Path, seed: int = 0, **of: Any) -> Path:
    """The same model as a diffusers folder."""
    return write_parts(path, models(seed, **of), scheduler(), {"_class_name": "ChromaPipeline"})
