"""FLUX.3 klein of the true topology with random weights, small enough to train in a test: each part as its library
builds it, and as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

import tiny_flux2
from small_words import tokenizer
from tiny_flow import SIGNS, TEMPLATE, Models, write_parts, write_transformer, write_vae

LAYERS, TAPPED, WIDTH = 33, 8, 16
"""Of the text encoder: one more than the last that is read, how many are read, and its width."""


def language(layers: int = LAYERS, width: int = WIDTH) -> tuple[Any, Any]:
    """A Qwen3-VL, vision tower and all, and a tokenizer for it, which stands for its processor, too: that would need
    torchvision, and passes texts on."""
    torch.manual_seed(0)
    tok = tokenizer(SIGNS, eos="<|endoftext|>")
    tok.pad_token, tok.padding_side, tok.chat_template = "<|endoftext|>", "right", TEMPLATE
    tok.tokenizer = tok
    text = {
        "vocab_size": len(tok),
        "hidden_size": width,
        "intermediate_size": 24,
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
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    model = Qwen3VLForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and ".layers." in name:  # so that layers differ from each other
            parameter.data *= 4
    return model, tok


def models(seed: int = 0, *, jumps: bool = False) -> Models:
    """Of width 32 with heads of 16, norms not as they begin. Nothing changes them, so each is made once."""
    return Models(_transformer(seed, jumps), *_others(seed))


@cache
def _transformer(seed: int, jumps: bool) -> Any:
    """A block of each mode, and two that all share."""
    torch.manual_seed(seed)
    transformer = Flux3Transformer2DModel(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TAPPED * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=jumps,
    ).eval()
    for name, parameter in transformer.named_parameters():
        if ".norm_" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
        else:  # so that texts and places make a difference that can be seen
            parameter.data *= 2
    return transformer


@cache
def _others(seed: int) -> tuple[Any, Any, Any]:
    return tiny_flux2.parts(seed, guidance=False)[1], *language()


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As the pipeline makes it."""
    return FlowMatchEulerDiscreteScheduler(shift=6.93)


# --- files ------------------------------------------------------------------------------------------------------------


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Black Forest Labs' names, written by hand from what diffusers' converter takes."""
    starts = {
        "timestep_embedder.linear_1.": "time_in.in_layer.",
        "timestep_embedder.linear_2.": "time_in.out_layer.",
        "target_timestep_embedder.linear_1.": "ref_time_in.in_layer.",
        "target_timestep_embedder.linear_2.": "ref_time_in.out_layer.",
        "x_embedders.": "emb_in.",
        "context_embedder.": "txt_in.",
        "mode_blocks.": "content_mode_blocks.",
        "single_transformer_blocks.": "single_blocks.",
        "norm_out.linear.": "final_layer.image.adaLN_modulation.1.",
        "proj_out.": "final_layer.image.linear.",
    }
    inside = {
        ".attn.to_q.": ".q_proj.",
        ".attn.to_k.": ".k_proj.",
        ".attn.to_v.": ".v_proj.",
        ".attn.to_out.0.": ".attn_out.",
        ".attn.norm_q.weight": ".norm.query_norm.scale",
        ".attn.norm_k.weight": ".norm.key_norm.scale",
        ".ff.linear_in.": ".mlp_in.",
        ".ff.linear_out.": ".mlp_out.",
    }
    tensors = {}
    for key, value in state.items():
        name = next((new + key.removeprefix(old) for old, new in starts.items() if key.startswith(old)), key)
        for one, other in inside.items():
            name = name.replace(one, other)
        name = name.replace(".linear.", ".lin.") if "_stream_modulations" in name else name
        tensors[name] = torch.cat(value.chunk(2)[::-1]) if "adaLN" in name else value
    return tensors


def write_base(path: Path, seed: int = 0, prefix: str = "", *, jumps: bool = False) -> Path:
    """The transformer as one file in the published names; text encoder and VAE beside it, see `beside`."""
    made = models(seed, jumps=jumps)
    write_text(path.parent / "text" / "qwen3vl_4b_bf16.safetensors", made)
    write_vae(path.parent / "flux2-vae.safetensors", made.vae)
    return write_transformer(path, native(made.transformer.state_dict()), prefix)


def write_text(path: Path, made: Models) -> Path:
    """The text encoder as one file in ComfyUI's names, vision tower and all, its tokenizer.json beside it."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value for key, value in made.text.state_dict().items() if key != "lm_head.weight"}
    named = {k.replace("model.language_model.", "model.", 1).removeprefix("model.visual."): k for k in state}
    named = {f"visual.{n}" if k.startswith("model.visual.") else n: k for n, k in named.items()}
    save_file({name: state[key].contiguous() for name, key in named.items()}, path)
    made.tokenizer.backend_tokenizer.save(str(path.parent / "tokenizer.json"))
    return path


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    text, vae = folder / "text" / "qwen3vl_4b_bf16.safetensors", folder / "flux2-vae.safetensors"
    return {"text_encoder": [text], "vae": vae}


def write_folder(path: Path, seed: int = 0, *, jumps: bool = False) -> Path:
    """The same model as a diffusers folder."""
    return write_parts(path, models(seed, jumps=jumps), scheduler(), {"_class_name": "Flux3ModularPipeline"})
