"""Stable Diffusion 3 of the true topology with random weights, small enough to train in a test: as its library builds
it, and as people have it, in one file with or without its text encoders, or in a diffusers folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

import small_words
from tiny_flow import autoencoder, write_vae

INSIDE = {name: f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl")}
"""What keys of text encoders begin with in a file with everything."""


class Models(NamedTuple):
    """Built by the libraries themselves."""

    transformer: Any
    vae: Any
    clip_l: Any
    clip_g: Any
    t5: Any
    tokenizer: Any


def models(
    seed: int = 0, *, dual: tuple[int, ...] = (0,), normed: bool = True, channels: int = 16, projected: bool = False
) -> Models:
    """Three blocks of width 64, of which the first is dual, as in 3.5 Medium; CLIPs and T5 of two layers.

    Without `normed` as 3 Medium; `projected`: CLIP-L's projection is one of random numbers, and not the identity.
    """
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        num_layers=3,
        attention_head_dim=32 if normed else 64,
        num_attention_heads=2 if normed else 1,
        joint_attention_dim=72,
        caption_projection_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=12,
        dual_attention_layers=dual,
        qk_norm="rms_norm" if normed else None,
    ).eval()
    words = sorted({f"\u2581{word}" for word in small_words.TEXT.split()})
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *words, *"abcdefghijklmnopqrstuvwxyz,"]
    tok = T5Tokenizer(vocab=[(piece, -float(n > 2)) for n, piece in enumerate(pieces)], extra_ids=0)
    shape = {"d_model": 72, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2}
    t5 = T5EncoderModel(T5Config(vocab_size=len(tok) + 4, feed_forward_proj="gated-gelu", **shape)).eval()
    clip_l, clip_g = _clip(24, "quick_gelu"), _clip(40, "gelu")
    if not projected:
        clip_l.text_projection.weight.data = torch.eye(24)
    vae = AutoencoderKL.from_config({**autoencoder(seed).config, "scaling_factor": 1.5305, "shift_factor": 0.0609})
    return Models(transformer, vae.eval(), clip_l, clip_g, t5, tok)


def _clip(width: int, activation: str) -> Any:
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return CLIPTextModelWithProjection(config).eval()


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As published."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


# --- files ------------------------------------------------------------------------------------------------------------


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stability's names, written by hand from what diffusers' converter takes."""
    rows = {
        "pos_embed.proj": "x_embedder.proj",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
    }
    for theirs, own in (("timestep", "t"), ("text", "y")):
        for n, layer in ((0, 1), (2, 2)):
            rows[f"time_text_embed.{theirs}_embedder.linear_{layer}"] = f"{own}_embedder.mlp.{n}"
    swapped = {"norm_out.linear": "final_layer.adaLN_modulation.1"}
    swapped["transformer_blocks.2.norm1_context.linear"] = "joint_blocks.2.context_block.adaLN_modulation.1"
    norms, fused = {}, {}
    for n in range(3):
        for stream, at in (("x_block", ""), ("context_block", "_context")):
            ldm, hf = f"joint_blocks.{n}.{stream}", f"transformer_blocks.{n}"
            if (n, stream) != (2, "context_block"):
                rows[f"{hf}.norm1{at}.linear"] = f"{ldm}.adaLN_modulation.1"
                rows[f"{hf}.attn.{'to_add_out' if at else 'to_out.0'}"] = f"{ldm}.attn.proj"
                rows[f"{hf}.ff{at}.net.0.proj"], rows[f"{hf}.ff{at}.net.2"] = f"{ldm}.mlp.fc1", f"{ldm}.mlp.fc2"
            for attn in ("attn", "attn2"):
                leaves = ("add_q_proj", "add_k_proj", "add_v_proj") if at else ("to_q", "to_k", "to_v")
                fused[f"{ldm}.{attn}.qkv"] = [f"{hf}.{attn}.{leaf}" for leaf in leaves]
                rows[f"{hf}.attn2.to_out.0"] = f"joint_blocks.{n}.x_block.attn2.proj"
                for leaf in "qk":
                    norms[f"{hf}.{attn}.norm_{'added_' if at else ''}{leaf}.weight"] = f"{ldm}.{attn}.ln_{leaf}.weight"
    tensors = {"pos_embed": state["pos_embed.pos_embed"]}
    tensors |= {new: state[old] for old, new in norms.items() if old in state}
    for leaf in ("weight", "bias"):
        tensors |= {f"{new}.{leaf}": state[f"{old}.{leaf}"] for old, new in rows.items() if f"{old}.{leaf}" in state}
        for old, new in swapped.items():
            scale, shift = state[f"{old}.{leaf}"].chunk(2)
            tensors[f"{new}.{leaf}"] = torch.cat([shift, scale])
        for new, parts in fused.items():
            if f"{parts[0]}.{leaf}" in state:
                tensors[f"{new}.{leaf}"] = torch.cat([state[f"{part}.{leaf}"] for part in parts])
    return tensors


def write_base(
    path: Path, seed: int = 0, prefix: str = "model.diffusion_model.", whole: bool = False, **of: Any
) -> Path:
    """Transformer and VAE as one file in the published names, and with `whole` the text encoders, too; else these
    beside it, see `beside`. T5's tokenizer.json lies beside it either way."""
    made = models(seed, **of)
    tensors = {prefix + key: value for key, value in native(made.transformer.state_dict()).items()}
    texts = write_texts(path.parent / "text", made)
    own = load_file(write_vae(path.parent / "vae.safetensors", made.vae))
    tensors |= {f"first_stage_model.{key}": value for key, value in own.items()}
    if whole:
        for name, file in zip(INSIDE, texts, strict=True):
            tensors |= {INSIDE[name] + key: value for key, value in load_file(file).items()}
            file.unlink()
        (path.parent / "text" / "tokenizer.json").rename(path.parent / "tokenizer.json")
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"modelspec.resolution": "64x64"})
    return path


def write_texts(folder: Path, made: Models) -> list[Path]:
    """The three as people have them, each in a file, with T5's tokenizer.json beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors")]
    for file, clip in zip(files, (made.clip_l, made.clip_g), strict=False):
        save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, file)
    t5 = {k: v.contiguous() for k, v in made.t5.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(t5, files[2])
    made.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return files


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    names = ("t5xxl_fp16.safetensors", "clip_g.safetensors", "clip_l.safetensors")
    return {"text_encoder": [folder / "text" / name for name in names]}


def write_folder(path: Path, seed: int = 0, **of: Any) -> Path:
    """The same model as a diffusers folder."""
    made = models(seed, **of)
    scheduler().save_pretrained(path / "scheduler")
    parts = {"transformer": made.transformer, "vae": made.vae, "text_encoder": made.clip_l}
    for name, part in {**parts, "text_encoder_2": made.clip_g, "text_encoder_3": made.t5}.items():
        part.save_pretrained(path / name)
    made.tokenizer.save_pretrained(path / "tokenizer_3")
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path
