"""FLUX.1 of the true topology with random weights, small enough to train in a test: as its library builds it, and as
people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

import small_words
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from tiny_flow import autoencoder, write_transformer, write_vae


class Models(NamedTuple):
    """Built by the libraries themselves."""

    transformer: Any
    vae: Any
    clip: Any
    t5: Any
    tokenizer: Any


def models(seed: int = 0, *, guidance: bool = True, channels: int = 64) -> Models:
    """A double and two single blocks of width 64 with heads of 32, CLIP of one layer and T5 of two."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=channels,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 14, 14),
    ).eval()
    words = sorted({f"\u2581{word}" for word in small_words.TEXT.split()})
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *words, *"abcdefghijklmnopqrstuvwxyz,"]
    tok = T5Tokenizer(vocab=[(piece, -float(n > 2)) for n, piece in enumerate(pieces)], extra_ids=0)
    shape = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2}
    t5 = T5EncoderModel(T5Config(vocab_size=len(tok) + 4, feed_forward_proj="gated-gelu", **shape)).eval()
    own = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPTextModel(CLIPTextConfig(**own, eos_token_id=49407, bos_token_id=49406)).eval()
    return Models(transformer, autoencoder(seed), clip, t5, tok)


def scheduler(made: Models) -> FlowMatchEulerDiscreteScheduler:
    """As dev's folder has it, or schnell's."""
    if not made.transformer.config.guidance_embeds:
        return FlowMatchEulerDiscreteScheduler(shift=1.0)
    line = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **line)


# --- files ------------------------------------------------------------------------------------------------------------


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Black Forest Labs' names, written by hand from what diffusers' converter takes."""
    rows = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "proj_out": "final_layer.linear",
        "transformer_blocks.0.norm1.linear": "double_blocks.0.img_mod.lin",
        "transformer_blocks.0.norm1_context.linear": "double_blocks.0.txt_mod.lin",
    }
    for theirs, own in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        rows[f"time_text_embed.{theirs}_embedder.linear_1"] = f"{own}_in.in_layer"
        rows[f"time_text_embed.{theirs}_embedder.linear_2"] = f"{own}_in.out_layer"
    for stream, out, ff in (("img", "to_out.0", "ff"), ("txt", "to_add_out", "ff_context")):
        rows[f"transformer_blocks.0.attn.{out}"] = f"double_blocks.0.{stream}_attn.proj"
        rows[f"transformer_blocks.0.{ff}.net.0.proj"] = f"double_blocks.0.{stream}_mlp.0"
        rows[f"transformer_blocks.0.{ff}.net.2"] = f"double_blocks.0.{stream}_mlp.2"
    for n in (0, 1):
        rows[f"single_transformer_blocks.{n}.norm.linear"] = f"single_blocks.{n}.modulation.lin"
        rows[f"single_transformer_blocks.{n}.proj_out"] = f"single_blocks.{n}.linear2"
    streams = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}
    tensors = {}
    for leaf in ("weight", "bias"):
        tensors |= {f"{new}.{leaf}": state[f"{old}.{leaf}"] for old, new in rows.items() if f"{old}.{leaf}" in state}
        scale, shift = state[f"norm_out.linear.{leaf}"].chunk(2)
        tensors[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
        for stream, names in streams.items():
            parts = [state[f"transformer_blocks.0.attn.{name}.{leaf}"] for name in names]
            tensors[f"double_blocks.0.{stream}_attn.qkv.{leaf}"] = torch.cat(parts)
        for n in (0, 1):
            inside = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            parts = [state[f"single_transformer_blocks.{n}.{name}.{leaf}"] for name in inside]
            tensors[f"single_blocks.{n}.linear1.{leaf}"] = torch.cat(parts)
    for norm in ("query", "key"):
        for stream, added in (("img", ""), ("txt", "added_")):
            key = f"transformer_blocks.0.attn.norm_{added}{norm[0]}.weight"
            tensors[f"double_blocks.0.{stream}_attn.norm.{norm}_norm.scale"] = state[key]
        for n in (0, 1):
            key = f"single_transformer_blocks.{n}.attn.norm_{norm[0]}.weight"
            tensors[f"single_blocks.{n}.norm.{norm}_norm.scale"] = state[key]
    return tensors


def write_base(path: Path, seed: int = 0, prefix: str = "", **of: Any) -> Path:
    """The transformer as one file in the published names; text encoders and VAE beside it, see `beside`."""
    made = models(seed, **of)
    write_texts(path.parent / "text", made)
    write_vae(path.parent / "ae.safetensors", made.vae)
    return write_transformer(path, native(made.transformer.state_dict()), prefix)


def write_texts(folder: Path, made: Models) -> Path:
    """CLIP-L and T5 as people have them, each in a file, with T5's tokenizer.json beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = {f"text_model.{k.removeprefix('text_model.')}": v.contiguous() for k, v in made.clip.state_dict().items()}
    save_file(clip, folder / "clip_l.safetensors")
    t5 = {k: v.contiguous() for k, v in made.t5.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(t5, folder / "t5xxl_fp16.safetensors")
    made.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    texts = [folder / "text" / name for name in ("t5xxl_fp16.safetensors", "clip_l.safetensors")]
    return {"text_encoder": texts, "vae": folder / "ae.safetensors"}


def write_folder(path: Path, seed: int = 0, *, pipeline: str = "FluxPipeline", **of: Any) -> Path:
    """The same model as a diffusers folder."""
    made = models(seed, **of)
    scheduler(made).save_pretrained(path / "scheduler")
    for name, part in (("transformer", made.transformer), ("vae", made.vae), ("text_encoder", made.clip)):
        part.save_pretrained(path / name)
    made.t5.save_pretrained(path / "text_encoder_2")
    made.tokenizer.save_pretrained(path / "tokenizer_2")
    index = {"_class_name": pipeline, "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


def pipeline_of(kind: Any, made: Models) -> Any:
    """The same model in diffusers' hands; `kind`: FluxPipeline, or another that is built alike."""
    pipe = kind(
        scheduler=scheduler(made),
        vae=made.vae,
        text_encoder=made.clip,
        tokenizer=clip_tokenizer(),
        text_encoder_2=made.t5,
        tokenizer_2=made.tokenizer,
        transformer=made.transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
