"""Small language models that see, for the tests: real ones of transformers, made on the spot, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import small_words

MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "aya_vision": ({"model_type": "cohere2"}, {"model_type": "siglip_vision_model"}, {}),
    "cohere2_vision": ({"model_type": "cohere2"}, {"model_type": "siglip_vision_model"}, {}),
    "gemma3": ({}, {}, {"mm_tokens_per_image": 4}),
    "gemma4": ({"vocab_size_per_layer_input": 16, "global_head_dim": 8, "hidden_size_per_layer_input": 0}, {}, {}),
    "glm46v": (MROPE, {}, {}),
    "glm4v": (MROPE, {}, {}),
    "idefics3": ({"model_type": "llama"}, {}, {"scale_factor": 1}),
    "internvl": ({"model_type": "qwen2"}, {"image_size": [28, 28], "patch_size": [14, 14]}, {}),
    "lfm2_vl": (
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        {"model_type": "siglip2_vision_model"},
        {"projector_hidden_size": 16},
    ),
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model"}, {}),
    "llava_next": ({"model_type": "mistral"}, {"model_type": "clip_vision_model"}, {}),
    "llava_onevision": ({"model_type": "qwen2"}, {"model_type": "siglip_vision_model"}, {}),
    "mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral", "head_dim": 8}, {}),
    "qwen2_5_vl": (MROPE, {}, {}),
    "qwen2_vl": (MROPE, {"embed_dim": 16, "hidden_size": 32}, {}),
    "qwen3_5": (LINEAR | MROPE, {}, {}),
    "qwen3_5_moe": (LINEAR | MROPE | EXPERTS, {}, {}),
    "qwen3_vl": (MROPE, {}, {}),
    "qwen3_vl_moe": (MROPE | EXPERTS | {"decoder_sparse_step": 1}, {}, {}),
    "smolvlm": ({"model_type": "llama"}, {}, {"scale_factor": 1}),
}
"""Model type -> what its config has beside the sizes: of the text, of the eye, of the whole."""
EYE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 32,
    "image_size": 28,
    "patch_size": 14,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}


def write(folder: Path, kind: str, template: str | None = small_words.CHATML, **changes: Any) -> Path:
    """A random model of two layers with an eye of one as a transformers folder, float32, with ChatML's tokenizer."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tok = small_words.tokenizer(template=template)
    text, eye, whole = KINDS[kind]
    ends = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.eos_token_id, "bos_token_id": None}
    torch.manual_seed(3)
    inside = small_words.SIZES | {"vocab_size": len(tok)} | ends | text | changes
    config = CONFIG_MAPPING[kind](text_config=inside, vision_config=EYE | eye, **whole)
    for part in (config, config.text_config):
        part.initializer_range = 0.3
    model = transformers.AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
