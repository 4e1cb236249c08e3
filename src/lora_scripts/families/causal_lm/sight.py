"""Language models that see, too (Gemma 3, Qwen3-VL, Mistral 3 …): of their folders the language model alone is used.

They are trained on texts. What only pictures come through is not kept in memory, gets no LoRA, and is merged as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SEEING = frozenset(
    {
        "aya_vision",
        "cohere2_vision",
        "gemma3",
        "gemma4",
        "glm46v",
        "glm4v",
        "idefics3",
        "internvl",
        "lfm2_vl",
        "llava",
        "llava_next",
        "llava_onevision",
        "mistral3",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "smolvlm",
    }
)
"""transformers' model types, of each of which a narrow model is tried in the tests. Others have a text encoder of
their own before the decoder (Florence-2), queries between the two (BLIP-2), or names that nobody has looked at."""
_RENAMED = (
    (re.compile(r"language_model\.model\."), "model.language_model."),
    (re.compile(r"language_model\.lm_head\."), "lm_head."),
    (re.compile(r"model\.(?=(?:layers|embed_tokens|norm)\.)"), "model.language_model."),
    (re.compile(r"(?=(?:vision_tower|vision_model|visual|multi_modal_projector)\.)"), "model."),
)
"""How files begin names that transformers begins otherwise: LLaVA's and its heirs', Qwen2-VL's."""


def sees(config: Mapping[str, Any]) -> bool:
    """Whether config.json is that of a language model which sees, of a kind that is known here."""
    names = config.get("architectures")
    whole = isinstance(names, list) and any(str(name).endswith("ForConditionalGeneration") for name in names)
    return whole and config.get("model_type") in SEEING


def module_of(key: str) -> str:
    """The name that transformers has for what such a folder's files call `key`."""
    for pattern, name in _RENAMED:
        if found := pattern.match(key):
            return name + key[found.end() :]
    return key


def blind(model: Any) -> list[str]:
    """Lets go of all of a model of transformers but its decoder and its output layer; the names of what went."""
    decoder, whole = model.get_decoder(), model.base_model
    kept: set[nn.Module] = {decoder, model.get_output_embeddings()}
    gone: list[str] = []
    names = {module: name for name, module in model.named_modules()}
    for name, part in list(whole.named_children()):
        if part not in kept and not any(module in kept for module in part.modules()):
            gone += [names[module] for module in part.modules()]
            setattr(whole, name, None)
    return gone
