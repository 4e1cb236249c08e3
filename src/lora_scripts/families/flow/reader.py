"""A language model as text encoder: prompts in its template, hidden states of some of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.errors import UserError
from lora_scripts.families.flow import qwen3
from lora_scripts.families.flow.qwen3 import Source
from lora_scripts.families.flow.standby import Standby, bare_tokenizer
from lora_scripts.families.sd.rows import from_rows

FILL = "<|endoftext|>"
"""What texts are filled up with."""


@dataclass(frozen=True)
class Reading:
    """How a family reads texts."""

    before: str
    """Of the template: what stands before a text."""
    after: str
    taps: Callable[[int], tuple[int, ...]]
    """Of a model of so many layers: behind which of them the states are taken, 0 being the embeddings; side by side."""
    most: int
    """Tokens; the rest of a longer text is cut off."""
    filled: bool
    """Whether every text is filled up to `most`, and what fills it is read, too."""


class LanguageEncoder(Standby):
    """A frozen Qwen3, in the run's precision: {"states": [n, tokens, width], zeros behind the shorter ones, "lengths":
    [n]}."""

    def __init__(self, reading: Reading, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.reading = source, reading
        self.taps = reading.taps(source.layout.layers)
        self.tokens = bare_tokenizer(source.tokenizer)
        read = f"{reading.before!r} {reading.after!r} {self.taps} {reading.most} {dtype}"
        super().__init__((*source.files, source.tokenizer), read, device, dtype)

    def excess(self, text: str) -> int:
        """How many tokens of a text in its template are cut off."""
        return max(0, len(self._ids(text)) - self.reading.most)

    def _read(self, text: str) -> dict[str, Tensor]:
        states = self._states(text)
        return {"states": states, "lengths": torch.tensor(len(states))}

    def _ids(self, text: str) -> list[int]:
        whole = f"{self.reading.before}{text}{self.reading.after}"
        ids: list[int] = self.tokens.encode(whole, add_special_tokens=False).ids
        return ids

    @torch.no_grad()
    def _states(self, text: str) -> Tensor:
        """[tokens, width]. UserError where they are no numbers."""
        ids = self._ids(text)[: self.reading.most]
        there = len(ids)
        if self.reading.filled:
            fill = self.tokens.token_to_id(FILL)
            assert fill is not None  # `qwen3.find` has looked
            ids += [fill] * (self.reading.most - there)
        mask = torch.arange(len(ids), device=self.device) < there
        model = self._loaded()
        out = model(
            input_ids=torch.tensor([ids], device=self.device),
            attention_mask=mask[None] if self.reading.filled else None,
            output_hidden_states=True,
            use_cache=False,
        )
        states = torch.cat([out.hidden_states[tap][0] for tap in self.taps], -1)
        if not torch.isfinite(states[:there]).all():
            hint = "use precision bf16 or fp32"
            raise UserError("the text encoder's states are no numbers", file=self.source.path, hint=hint)
        return states

    def _build(self) -> Any:
        return build(self.source, max(self.taps), self.dtype)


def build(source: Source, layers: int, dtype: torch.dtype) -> Any:
    """transformers' Qwen3Model with no more than its first layers, and no norm behind them: what is read stands
    before."""
    from transformers import Qwen3Config, Qwen3Model
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = Qwen3Config(**qwen3.config_of(source.layout, layers))
    with torch.device("meta"):
        model = Qwen3Model(config)
    model.norm = nn.Identity()
    model.rotary_emb = Qwen3RotaryEmbedding(config)  # its numbers are computed, and stand in no file
    state = from_rows(source.pieces(), qwen3.rows(source.layout, layers), dtype=dtype)
    # Copied: on a CPU products may round differently where a matrix does not begin at a round address.
    model.load_state_dict({key: t.to(dtype, copy=True) for key, t in state.items()}, strict=True, assign=True)
    return model.requires_grad_(False).eval()
