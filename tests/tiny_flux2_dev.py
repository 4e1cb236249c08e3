"""FLUX.2 dev of the true topology with random weights, small enough to train in a test: as its library builds it, and
as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.integrations.mistral.tokenizer import MistralConverter

import small_words
from tiny_flow import Models, write_parts, write_transformer, write_vae
from tiny_flux2 import native, parts, scheduler

__all__ = ["beside", "models", "scheduler", "write_base", "write_folder", "write_text"]

SIGNS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}{%- set text = m['content'][0]['text'] %}"
    "{%- if m['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- '[INST]' + text + '[/INST]' }}{%- endif %}{%- endfor %}"
)
"""What of Mistral's own concerns one message of the system and one of a user."""
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Shorter than the published one, of the same kind."""


def tekken(words: str = small_words.TEXT) -> bytes:
    """A tekken.json: every byte, every beginning of every word, and padding behind that nobody reads; 20 numbers are
    kept for special tokens, more than there are."""
    table = [bytes([n]) for n in range(256)]
    for word in words.split():
        for spelt in (word.encode(), b" " + word.encode()):
            table += [spelt[:n] for n in range(2, len(spelt) + 1) if spelt[:n] not in table]
    rows = [{"rank": n, "token_bytes": base64.b64encode(t).decode()} for n, t in enumerate([*table, b"unread"])]
    special = [{"rank": n, "token_str": sign, "is_control": True} for n, sign in enumerate(SIGNS)]
    config = {"pattern": PATTERN, "default_vocab_size": 20 + len(table), "default_num_special_tokens": 20}
    return json.dumps({"config": config, "vocab": rows, "special_tokens": special}).encode()


@cache
def models(seed: int = 0) -> Models:
    """klein's transformer of a double and two single blocks, told its guidance; a Mistral of 31 layers of width 24,
    vision tower and all, and its tokenizer as transformers makes it of `tekken`. Nothing changes them, so they are made
    once."""
    transformer, vae = parts(seed, guidance=True)
    return Models(transformer, vae, *language(seed))


def language(seed: int = 0, layers: int = 31) -> tuple[Any, Any]:
    """Its heads are of 128 channels, as published: a file alone does not say how wide they are."""
    torch.manual_seed(seed)
    tok = tokenizer()
    text = {
        "model_type": "mistral",
        "vocab_size": len(tok),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000_000.0},
    }
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 16}
    model = Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=5)
    )
    for name, parameter in model.named_parameters():  # so that texts make a difference that can be seen
        parameter.data *= 4 if ".self_attn." in name else 1
    return model.eval(), tok


def tokenizer(path: Path | None = None) -> Any:
    """By transformers' own converter."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        file = Path(folder) / "tekken.json" if path is None else path
        file.write_bytes(tekken())
        made = MistralConverter(str(file)).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", padding_side="left", chat_template=TEMPLATE
    )


# --- files ------------------------------------------------------------------------------------------------------------


def write_base(path: Path, seed: int = 0, prefix: str = "") -> Path:
    """The transformer as one file in the published names; text encoder and VAE beside it, see `beside`."""
    made = models(seed)
    write_text(path.parent / "text" / FILE, made.text.state_dict())
    write_vae(path.parent / "ae.safetensors", made.vae)
    return write_transformer(path, native(made.transformer.state_dict()), prefix)


FILE = "mistral_3_small_flux2_bf16.safetensors"


def write_text(path: Path, state: Mapping[str, torch.Tensor], layers: int = 30, *, own: bool = True) -> Path:
    """The text encoder as ComfyUI has it: `model.` before the first 30 layers alone, vision tower and all, the norm
    behind the last gone, and with `own` the tokenizer as a tensor of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, value in state.items():
        name = (
            key.replace("model.language_model.", "model.")
            .replace("model.vision", "vision")
            .replace("model.multi", "multi")
        )
        number = name.removeprefix("model.layers.").partition(".")[0]
        if not (name.startswith(("lm_head.", "model.norm.")) or (number.isdecimal() and int(number) >= layers)):
            tensors[name] = value.contiguous()
    if own:
        tensors["tekken_model"] = torch.from_numpy(np.frombuffer(tekken(), dtype=np.uint8).copy())
    save_file(tensors, path)
    return path


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    return {"text_encoder": [folder / "text" / FILE], "vae": folder / "ae.safetensors"}


def write_folder(path: Path, seed: int = 0) -> Path:
    """The same model as a diffusers folder."""
    return write_parts(path, models(seed), scheduler(), {"_class_name": "Flux2Pipeline"})
