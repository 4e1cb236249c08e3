"""Small tokenizers and language models for the tests: real ones, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
"""Of a narrow model's layers."""
TEXT = "the weather in Paris is sunny, what is 2+2? hello how are you\n\n user assistant system Yes. brief"


def tokenizer(
    signs: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    template: str | None = CHATML,
    *,
    bos: str | None = None,
    eos: str = "<|im_end|>",
    adds_bos: bool = False,
) -> Any:
    """Byte-level pairs with `signs` as special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys([eos, *([bos] if bos else []), *signs]))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    if adds_bos:
        assert bos is not None
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    more = {"bos_token": bos} if bos else {}
    extra = [sign for sign in signs if sign not in (bos, eos)]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=eos, extra_special_tokens=extra, chat_template=template, **more
    )


def write_model(folder: Path, kind: str = "qwen3", **changes: Any) -> Path:
    """A random model of two layers as a transformers folder, float32, with the tokenizer of ChatML."""
    import torch
    import transformers

    tok = tokenizer()
    name = {
        "qwen3": "Qwen3",
        "llama": "Llama",
        "gpt2": "GPT2",
        "mistral": "Mistral",
        "gemma2": "Gemma2",
        "phi3": "Phi3",
    }
    sizes: dict[str, Any] = SIZES | {
        "vocab_size": len(tok),
        "tie_word_embeddings": True,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.eos_token_id,
        "bos_token_id": None,
    }
    if kind == "gpt2":
        sizes = {"vocab_size": len(tok), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        sizes |= {"eos_token_id": tok.eos_token_id, "bos_token_id": tok.eos_token_id}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(3)
    config = getattr(transformers, f"{name[kind]}Config")(**sizes | changes)
    config.initializer_range = 0.3
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
