"""FLUX.2 klein of the true topology with random weights, small enough to train in a test: as its library builds it, and
as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

from tiny_flow import Models, beside, language, write_beside, write_parts, write_transformer

__all__ = ["beside", "models", "native", "parts", "scheduler", "write_base", "write_folder"]


def models(seed: int = 0) -> Models:
    """A double and two single blocks of width 32 with heads of 16, a text encoder of 28 layers, statistics unlike 0 and
    1."""
    return Models(*parts(seed, guidance=False), *language(seed, layers=28))


def parts(seed: int, *, guidance: bool) -> tuple[Any, Any]:
    """The transformer, that reads three states of width 24 side by side, and the VAE."""
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 24,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    ).eval()
    vae = AutoencoderKLFlux2(block_out_channels=(32, 32, 32, 32), latent_channels=32, sample_size=64).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return transformer, vae


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As published."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


# --- files ------------------------------------------------------------------------------------------------------------


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Black Forest Labs' names, written by hand from what diffusers' converter takes."""
    plain = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "proj_out": "final_layer.linear",
    }
    tensors = {f"{new}.weight": state[f"{old}.weight"] for old, new in plain.items() if f"{old}.weight" in state}
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    tensors["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    double = {
        "attn.to_out.0": "img_attn.proj.weight",
        "attn.norm_q": "img_attn.norm.query_norm.scale",
        "attn.norm_k": "img_attn.norm.key_norm.scale",
        "ff.linear_in": "img_mlp.0.weight",
        "ff.linear_out": "img_mlp.2.weight",
        "attn.to_add_out": "txt_attn.proj.weight",
        "attn.norm_added_q": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
        "ff_context.linear_in": "txt_mlp.0.weight",
        "ff_context.linear_out": "txt_mlp.2.weight",
    }
    single = {
        "attn.to_qkv_mlp_proj": "linear1.weight",
        "attn.to_out": "linear2.weight",
        "attn.norm_q": "norm.query_norm.scale",
        "attn.norm_k": "norm.key_norm.scale",
    }
    tensors |= {f"double_blocks.0.{new}": state[f"transformer_blocks.0.{old}.weight"] for old, new in double.items()}
    for n in (0, 1):
        rows = {
            f"single_blocks.{n}.{new}": f"single_transformer_blocks.{n}.{old}.weight" for old, new in single.items()
        }
        tensors |= {new: state[old] for new, old in rows.items()}
    for stream, leaves in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"))):
        parts = [state[f"transformer_blocks.0.attn.{leaf}.weight"] for leaf in leaves]
        tensors[f"double_blocks.0.{stream}_attn.qkv.weight"] = torch.cat(parts)
    return tensors


def write_base(path: Path, seed: int = 0, prefix: str = "") -> Path:
    """The transformer as one file in the published names; text encoder and VAE beside it, see `beside`."""
    made = models(seed)
    write_beside(path.parent, made)
    return write_transformer(path, native(made.transformer.state_dict()), prefix)


def write_folder(path: Path, seed: int = 0, **index: object) -> Path:
    """The same model as a diffusers folder."""
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": False, **index}
    return write_parts(path, models(seed), scheduler(), index)
