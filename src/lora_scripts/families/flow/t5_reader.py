"""T5 as a text encoder: texts as tokens, and the model."""

from __future__ import annotations

from typing import Any

import torch

from lora_scripts.errors import UserError
from lora_scripts.families.flow import t5
from lora_scripts.families.flow.pieces import take_blocks
from lora_scripts.families.flow.t5 import T5Source
from lora_scripts.families.flow.token_files import bare_tokenizer
from lora_scripts.families.sd.rows import from_rows


class T5Tokens:
    """Its tokenizer, without a limit. UserError for one of another model."""

    def __init__(self, source: T5Source) -> None:
        self._tokens = bare_tokenizer(source.tokenizer)
        end, fill = self._tokens.token_to_id(t5.END), self._tokens.token_to_id(t5.FILL)
        assert end is not None and fill is not None  # `t5.look` has looked
        self.end, self.fill = end, fill
        if (known := self._tokens.get_vocab_size()) > source.layout.vocab:
            text = f"this tokenizer knows {known} tokens, the T5 {source.layout.vocab}: it is of another model"
            hint = f"copy the one from the model's page into a folder {source.folder} beside the text encoder"
            raise UserError(text, file=source.tokenizer, hint=hint)

    def of(self, text: str, most: int) -> list[int]:
        """A text cut off at so many, the sign for the end among them."""
        return [*self._ids(text)[: most - 1], self.end]

    def filled(self, text: str, most: int) -> list[int]:
        """The same, filled up to so many."""
        own = self.of(text, most)
        return [*own, *[self.fill] * (most - len(own))]

    def excess(self, text: str, most: int) -> int:
        """How many are cut off."""
        return max(0, len(self._ids(text)) + 1 - most)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokens.encode(text, add_special_tokens=False).ids
        return ids


def build_t5(source: T5Source, dtype: torch.dtype) -> Any:
    """transformers' T5EncoderModel. In fp16 the last layers of its MLPs stay in fp32, as there: their sums go beyond
    what fp16 holds."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**t5.config_of(source.layout)))

    def dtype_of(key: str) -> torch.dtype:
        return torch.float32 if dtype == torch.float16 and key.endswith(".wo.weight") else dtype

    pieces = source.pieces()
    blocks, left = take_blocks(model, pieces, t5.rows(source.layout), dtype_of)
    # Copied: on a CPU products may round differently where a matrix does not begin at a round address.
    state = from_rows(pieces, left, dtype=torch.float32)
    whole = {key: tensor.clone() for key, tensor in blocks.items()}
    whole |= {key: tensor.to(dtype_of(key), copy=True) for key, tensor in state.items()}
    whole["encoder.embed_tokens.weight"] = whole["shared.weight"]
    model.load_state_dict(whole, strict=True, assign=True)
    return model.requires_grad_(False).eval()
