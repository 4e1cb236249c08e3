"""What narrow random models of the flow families share: Qwen3, FLUX.1's VAE, and how a model is written as people have
it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

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


# --- files ------------------------------------------------------------------------------------------------------------


def write_transformer(path: Path, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> Path:
    """In a file of its own, made for pictures of 64 x 64."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + k: v.contiguous() for k, v in tensors.items()}, path, {"modelspec.resolution": "64x64"})
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


def write_beside(folder: Path, made: Models) -> None:
    """Qwen3 and the VAE in files of their own, as `beside` names them."""
    write_text(folder / "text" / "qwen_3_4b.safetensors", made)
    write_vae(folder / "ae.safetensors", made.vae)


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_beside` wrote into the base's folder."""
    return {"text_encoder": [folder / "text" / "qwen_3_4b.safetensors"], "vae": folder / "ae.safetensors"}


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
