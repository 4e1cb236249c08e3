"""Z-Image of the true topology with random weights, small enough to train in a test: as its library builds it, and as
people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

from tiny_flow import Models, autoencoder, beside, language, write_beside, write_parts, write_transformer

__all__ = ["beside", "models", "native", "scheduler", "write_base", "write_folder"]


def models(seed: int = 0) -> Models:
    """Two layers of width 32 with heads of 16, a refiner on either side."""
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 512, 512],
    ).eval()
    for parameter in transformer.parameters():  # the fill-up tokens are zeros as built
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return Models(transformer, autoencoder(seed), *language(seed))


def scheduler(shift: float = 3.0) -> FlowMatchEulerDiscreteScheduler:
    """As published."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


# --- files ------------------------------------------------------------------------------------------------------------


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of ComfyUI's single file, written by hand from what diffusers' converter takes."""
    tensors: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = key.replace("all_x_embedder.2-1.", "x_embedder.").replace("all_final_layer.2-1.", "final_layer.")
        name = name.replace(".attention.to_out.0.", ".attention.out.")
        name = name.replace(".attention.norm_q.", ".attention.q_norm.").replace(
            ".attention.norm_k.", ".attention.k_norm."
        )
        if ".attention.to_" in name and ".to_out" not in name:
            if ".to_q." in name:
                parts = [state[key.replace(".to_q.", f".to_{leaf}.")] for leaf in "qkv"]
                tensors[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
            continue
        tensors[name] = value
    return tensors


def write_base(path: Path, seed: int = 0, prefix: str = "") -> Path:
    """The transformer as one file in ComfyUI's names; text encoder and VAE beside it, see `beside`."""
    made = models(seed)
    write_beside(path.parent, made)
    return write_transformer(path, native(made.transformer.state_dict()), prefix)


def write_folder(path: Path, seed: int = 0, shift: float = 3.0) -> Path:
    """The same model as a diffusers folder."""
    return write_parts(path, models(seed), scheduler(shift), {"_class_name": "ZImagePipeline"})
