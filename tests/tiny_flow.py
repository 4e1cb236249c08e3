"""Z-Image, FLUX.1 and FLUX.2 klein of the true topology with random weights, small enough to train in a test: each part
as its library builds it, and as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import small_words
from lora_scripts.adapters.inject import inject, remove
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.base import Batch, LoadOptions
from lora_scripts.families.facts import Facts
from lora_scripts.families.table import load_family
from lora_scripts.formats.header import read_header
from small_words import tokenizer

SIGNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""What of Qwen3's own concerns one message of a user."""


class Models(NamedTuple):
    """Built by the libraries themselves."""

    transformer: Any
    vae: Any
    text: Any
    tokenizer: Any


def language(seed: int = 0, width: int = 24, layers: int = 4) -> tuple[Any, Any]:
    """A Qwen3 of a few layers, and a tokenizer for it."""
    torch.manual_seed(seed)
    tok = tokenizer((*SIGNS, "<think>", "</think>"), TEMPLATE, eos="<|endoftext|>")
    tok.pad_token = "<|endoftext|>"
    tok.padding_side = "right"
    config = Qwen3Config(
        vocab_size=len(tok),
        hidden_size=width,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    return Qwen3ForCausalLM(config).eval(), tok


def autoencoder(seed: int = 0) -> Any:
    """Of 16 channels, as FLUX.1's."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    ).eval()


def zimage(seed: int = 0) -> Models:
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


def native_zimage(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def write_zimage(path: Path, seed: int = 0, dtype: torch.dtype = torch.float32, prefix: str = "") -> Path:
    """The transformer as one file in ComfyUI's names; text encoder and VAE beside it, see `beside`."""
    made = zimage(seed)
    tensors = {prefix + k: v.to(dtype).contiguous() for k, v in native_zimage(made.transformer.state_dict()).items()}
    save_file(tensors, path, {"modelspec.resolution": "64x64"})
    write_text(path.parent / "text" / "qwen_3_4b.safetensors", made)
    write_vae(path.parent / "ae.safetensors", made.vae)
    return path


def write_text(path: Path, made: Models) -> Path:
    """The text encoder as one file, with its tokenizer.json beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in made.text.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, path)
    made.tokenizer.backend_tokenizer.save(str(path.parent / "tokenizer.json"))
    return path


def write_vae(path: Path, vae: Any) -> Path:
    """In the names of the published `ae.safetensors`."""
    from lora_scripts.families.sd.rows import to_rows
    from lora_scripts.families.sd.vae import vae_rows

    quant = bool(vae.config.use_quant_conv)
    rows = vae_rows((32, 32, 32, 32), vae.config.latent_channels, "", quant=quant)
    own = {key: value for key, value in vae.state_dict().items() if not key.startswith("bn.")}
    tensors = to_rows(rows, own) | {k: v for k, v in vae.state_dict().items() if k.startswith("bn.")}
    moved = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    named = {
        next((new + k.removeprefix(old) for old, new in moved.items() if k.startswith(old)), k): k for k in tensors
    }
    save_file({name: tensors[key].contiguous() for name, key in named.items()}, path)
    return path


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_zimage` wrote into the base's folder."""
    return {"text_encoder": [folder / "text" / "qwen_3_4b.safetensors"], "vae": folder / "ae.safetensors"}


def write_folder(path: Path, seed: int = 0, shift: float = 3.0) -> Path:
    """The same model as a diffusers folder."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return write_parts(path, zimage(seed), scheduler, {"_class_name": "ZImagePipeline"})


def write_parts(path: Path, made: Models, scheduler: Any, index: dict[str, object]) -> Path:
    """Each model into its folder of a diffusers folder."""
    made.transformer.save_pretrained(path / "transformer")
    made.vae.save_pretrained(path / "vae")
    made.text.save_pretrained(path / "text_encoder")
    made.tokenizer.save_pretrained(path / "tokenizer")
    scheduler.save_pretrained(path / "scheduler")
    index = {**index, "transformer": ["diffusers", type(made.transformer).__name__]}
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


# --- FLUX.2 klein -----------------------------------------------------------------------------------------------------


def flux2(seed: int = 0) -> Models:
    """A double and two single blocks of width 32 with heads of 16, a text encoder of 28 layers, statistics unlike 0 and
    1."""
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 24,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).eval()
    vae = AutoencoderKLFlux2(block_out_channels=(32, 32, 32, 32), latent_channels=32, sample_size=64).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Models(transformer, vae, *language(seed, layers=28))


def native_flux2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Black Forest Labs' names, written by hand from what diffusers' converter takes."""
    plain = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "proj_out": "final_layer.linear",
    }
    tensors = {f"{new}.weight": state[f"{old}.weight"] for old, new in plain.items()}
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


def write_flux2(path: Path, seed: int = 0, prefix: str = "") -> Path:
    """The transformer as one file in the published names; text encoder and VAE beside it, see `beside`."""
    made = flux2(seed)
    tensors = {prefix + k: v.contiguous() for k, v in native_flux2(made.transformer.state_dict()).items()}
    save_file(tensors, path, {"modelspec.resolution": "64x64"})
    write_text(path.parent / "text" / "qwen_3_4b.safetensors", made)
    write_vae(path.parent / "ae.safetensors", made.vae)
    return path


def write_flux2_folder(path: Path, seed: int = 0, **index: object) -> Path:
    """The same model as a diffusers folder."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": False, **index}
    return write_parts(path, flux2(seed), scheduler, index)


# --- FLUX.1 -----------------------------------------------------------------------------------------------------------


class Flux1(NamedTuple):
    """Built by the libraries themselves."""

    transformer: Any
    vae: Any
    clip: Any
    t5: Any
    tokenizer: Any


def flux1(seed: int = 0, *, guidance: bool = True, channels: int = 64) -> Flux1:
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
    own = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPTextModel(CLIPTextConfig(**own, eos_token_id=49407, bos_token_id=49406)).eval()
    return Flux1(transformer, autoencoder(seed), clip, t5, tok)


def native_flux1(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def write_flux1(path: Path, seed: int = 0, prefix: str = "", **of: Any) -> Path:
    """The transformer as one file in the published names; text encoders and VAE beside it, see `beside_flux1`."""
    made = flux1(seed, **of)
    tensors = {prefix + k: v.contiguous() for k, v in native_flux1(made.transformer.state_dict()).items()}
    save_file(tensors, path, {"modelspec.resolution": "64x64"})
    write_texts(path.parent / "text", made)
    write_vae(path.parent / "ae.safetensors", made.vae)
    return path


def write_texts(folder: Path, made: Flux1) -> Path:
    """CLIP-L and T5 as people have them, each in a file, with T5's tokenizer.json beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = {f"text_model.{k.removeprefix('text_model.')}": v.contiguous() for k, v in made.clip.state_dict().items()}
    save_file(clip, folder / "clip_l.safetensors")
    t5 = {k: v.contiguous() for k, v in made.t5.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(t5, folder / "t5xxl_fp16.safetensors")
    made.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def beside_flux1(folder: Path) -> dict[str, object]:
    """As `beside`, of what `write_flux1` wrote."""
    texts = [folder / "text" / name for name in ("t5xxl_fp16.safetensors", "clip_l.safetensors")]
    return {"text_encoder": texts, "vae": folder / "ae.safetensors"}


def write_flux1_folder(path: Path, seed: int = 0, *, pipeline: str = "FluxPipeline", **of: Any) -> Path:
    """The same model as a diffusers folder."""
    made = flux1(seed, **of)
    flux1_scheduler(made).save_pretrained(path / "scheduler")
    for name, part in (("transformer", made.transformer), ("vae", made.vae), ("text_encoder", made.clip)):
        part.save_pretrained(path / name)
    made.t5.save_pretrained(path / "text_encoder_2")
    made.tokenizer.save_pretrained(path / "tokenizer_2")
    index = {"_class_name": pipeline, "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


def flux1_scheduler(made: Flux1) -> FlowMatchEulerDiscreteScheduler:
    """As dev's folder has it, or schnell's."""
    if not made.transformer.config.guidance_embeds:
        return FlowMatchEulerDiscreteScheduler(shift=1.0)
    line = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **line)


# --- all --------------------------------------------------------------------------------------------------------------


def batch_of(family: Any, pixels: torch.Tensor, captions: Sequence[str]) -> Batch:
    """As the loop gives it."""
    latents, texts = family.encode_image(pixels), family.encode_text(captions)
    return Batch(latents, captions, texts, ["a", "b"], [torch.Generator().manual_seed(n) for n in range(2)])


def lora_of(facts: Facts, transformer: Any, rank: int = 2, alpha: float = 0.5) -> dict[str, LoraWeights]:
    """On every layer that LoRA files have names for, with alpha unlike the rank."""
    generator = torch.Generator().manual_seed(3)
    layers, weights = transformer.state_dict(), {}
    for path in facts.names().written:
        key = f"{path.removeprefix('transformer.')}.weight"
        if key in layers:
            out, inner = layers[key].shape
            down, up = (torch.randn(*shape, generator=generator) / 4 for shape in ((rank, inner), (out, rank)))
            weights[path] = LoraWeights(down, up, alpha)
    return weights


def predicted(
    family: Any, weights: dict[str, LoraWeights], x: torch.Tensor, sigma: torch.Tensor, texts: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the base answers alone, and with a LoRA of rank 2 and alpha 0.5."""
    bare = family.predict(x, sigma, texts)
    layers: Any = inject(family.roots, weights, lambda path, layer: LoraLayer(layer, 2, 0.5), reset=False)
    for path, layer in layers.items():
        layer.load({"down": weights[path].down, "up": weights[path].up})
    ours = family.predict(x, sigma, texts)
    remove(family.roots, layers)
    return bare, ours


def misplaced(facts: Facts, base: Path, parts: Callable[[Path], dict[str, object]] = beside) -> list[str]:
    """Paths whose weight in the file, as `Facts.weights` finds it, is not the loaded model's."""
    tensors, wrong = load_file(base), []
    options: Any = {"device": torch.device("cpu"), "dtype": torch.float32, **parts(base.parent)}
    model: Any = load_family(facts, base, LoadOptions(**options))
    state = model.transformer.state_dict()
    for path, at in facts.weights(read_header(base), base).items():
        held = tensors[at.key]
        if at.share is not None:
            held = held[at.share.rows(len(held))]
        if not torch.equal(held, state[f"{path.removeprefix('transformer.')}.weight"]):
            wrong.append(path)
    return wrong
