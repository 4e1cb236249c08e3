"""What llama.cpp, and with it every GGUF file, calls the parameters of text encoders, and what transformers does.

Facts: the package gguf's `tensor_mapping`, which the tests hold this against. Neither Qwen's nor T5's numbers stand in
another order there; of Mistral q's and k's do (`families.flow.llm`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_LAYER = re.compile(r"(?:(enc|dec)\.)?blk\.(\d+)\.(\w+)\.(weight|bias)")
_LANGUAGE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LANGUAGE_ONCE = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
_CONFIG = {
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_attention_heads": "attention.head_count",
}
_T5 = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_T5_ONCE = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm", "output": "lm_head"}


def language(key: str) -> str:
    """A key of `families.flow.llm`; one that stands in no table stays as it is."""
    if (match := _LAYER.fullmatch(key)) and not match[1] and match[3] in _LANGUAGE:
        return f"layers.{match[2]}.{_LANGUAGE[match[3]]}.{match[4]}"
    return _once(key, _LANGUAGE_ONCE)


def t5(key: str) -> str:
    """A key of `families.flow.t5`, likewise; of the decoder, which nobody reads, no more than that it is its."""
    if (match := _LAYER.fullmatch(key)) and match[1] == "enc" and match[3] in _T5:
        return f"encoder.block.{match[2]}.{_T5[match[3]]}.{match[4]}"
    return f"decoder.{key}" if key.startswith("dec.") else _once(key, _T5_ONCE)


def config_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Of a language model's transformers config what a GGUF file says; nothing of a safetensors file."""
    kind = metadata.get("general.architecture", "")
    # Of one with a vision tower, which lies in a file of its own, that is all that tells it.
    found: dict[str, Any] = {"model_type": re.sub("vl$", "_vl", kind)} if kind else {}
    for key, name in _CONFIG.items():
        with suppress(KeyError, ValueError):
            found[key] = float(f"{float(metadata[f'{kind}.{name}']):.6g}")  # they are float32 there: 9.999999974e-07
    return found


def _once(key: str, table: dict[str, str]) -> str:
    name, _, leaf = key.rpartition(".")
    return f"{table[name]}.{leaf}" if name in table else key
