"""Anima of the true topology with random weights, small enough to train in a test: each part as its library builds it,
and as people have it, in a file of its own or in a diffusers folder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AnimaTextConditioner, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler

import tiny_flow
import tiny_qwen


class Models(NamedTuple):
    """Built by the libraries themselves."""

    transformer: Any
    adapter: Any
    vae: Any
    text: Any
    tokenizer: Any
    t5: Any


def t5_tokenizer(more: int = 0) -> Any:
    """Of T5's kind: pieces with odds, and a sign behind every text; `more` pieces than the adapter knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = ["<pad>", "</s>", "<unk>"]
    pieces = ["▁", *(chr(n) for n in range(33, 127)), "the", "▁sun", "ny", *(f"#{n}#" for n in range(more))]
    made = Tokenizer(models.Unigram([*((sign, 0.0) for sign in signs), *((p, -2.0 - len(p)) for p in pieces)], 2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(signs)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@cache
def models(seed: int = 0) -> Models:
    """Two blocks of width 32 with heads of 16, an adapter of two. Nothing changes it, so it is made once."""
    torch.manual_seed(seed)
    transformer = CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        text_embed_dim=32,
        adaln_lora_dim=8,
        rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    ).eval()
    adapter = AnimaTextConditioner(
        source_dim=24, target_dim=32, model_dim=32, num_layers=2, num_attention_heads=2, target_vocab_size=128
    ).eval()
    for parameter in (*transformer.parameters(), *adapter.parameters()):  # so that texts make a difference
        parameter.data = parameter * 2 if parameter.dim() == 2 else parameter + torch.randn_like(parameter) / 10
    text, tokenizer = tiny_flow.language(seed)
    return Models(transformer, adapter, tiny_qwen.autoencoder(seed), text, tokenizer, t5_tokenizer())


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As published."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


# --- files ------------------------------------------------------------------------------------------------------------


def native(made: Models) -> dict[str, torch.Tensor]:
    """The single file's names, without prefix."""
    from lora_scripts.families.anima.check import FILES
    from lora_scripts.families.anima.layout import layout_from, rows
    from lora_scripts.families.sd.rows import to_rows

    assert FILES.words == "Anima"
    tensors = to_rows(rows(layout_from(made.transformer.config)), made.transformer.state_dict())
    return tensors | {f"llm_adapter.{key}": value for key, value in made.adapter.state_dict().items()}


def write_base(path: Path, seed: int = 0, prefix: str = "net.") -> Path:
    """Transformer and adapter as one file; text encoder and VAE beside it, see `beside`."""
    made = models(seed)
    write_text(path.parent / "text" / "qwen_3_06b_base.safetensors", made)
    tiny_qwen.write_vae(path.parent / "qwen_image_vae.safetensors", made.vae)
    return tiny_flow.write_transformer(path, native(made), prefix)


def write_text(path: Path, made: Models) -> Path:
    """The text encoder as one file, with both tokenizers beside it."""
    tiny_flow.write_text(path, tiny_flow.Models(None, None, made.text, made.tokenizer))
    made.t5.backend_tokenizer.save(str(path.parent / "t5_tokenizer.json"))
    return path


def beside(folder: Path) -> dict[str, object]:
    """Keys of a config for the parts that `write_base` wrote into the base's folder."""
    text, vae = folder / "text" / "qwen_3_06b_base.safetensors", folder / "qwen_image_vae.safetensors"
    return {"text_encoder": [text], "vae": vae}


def write_folder(path: Path, seed: int = 0) -> Path:
    """The same model as a diffusers folder."""
    made = models(seed)
    parts = tiny_flow.Models(made.transformer, made.vae, made.text.model, made.tokenizer)
    tiny_flow.write_parts(path, parts, scheduler(), {})
    made.adapter.save_pretrained(path / "text_conditioner")
    made.t5.save_pretrained(path / "t5_tokenizer")
    return tiny_qwen.sized(path)
