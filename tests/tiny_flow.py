"""Z-Image and FLUX.2 klein of the true topology with random weights, small enough to train in a test: each part as its
library builds it, and as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from lora_scripts.families.base import LoadOptions
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
    return {"text_encoder": folder / "text" / "qwen_3_4b.safetensors", "vae": folder / "ae.safetensors"}


def write_folder(path: Path, seed: int = 0, shift: float = 3.0) -> Path:
    """The same model as a diffusers folder."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return _write_folder(path, zimage(seed), scheduler, {"_class_name": "ZImagePipeline"})


def _write_folder(path: Path, made: Models, scheduler: Any, index: dict[str, object]) -> Path:
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
    return _write_folder(path, flux2(seed), scheduler, index)


# --- both -------------------------------------------------------------------------------------------------------------


def misplaced(facts: Facts, base: Path) -> list[str]:
    """Paths whose weight in the file, as `Facts.weights` finds it, is not the loaded model's."""
    tensors, wrong = load_file(base), []
    options: Any = {"device": torch.device("cpu"), "dtype": torch.float32, **beside(base.parent)}
    model: Any = load_family(facts, base, LoadOptions(**options))
    state = model.transformer.state_dict()
    for path, at in facts.weights(read_header(base), base).items():
        held = tensors[at.key]
        if at.third is not None:
            held = held.chunk(3)[at.third]
        if not torch.equal(held, state[f"{path.removeprefix('transformer.')}.weight"]):
            wrong.append(path)
    return wrong
