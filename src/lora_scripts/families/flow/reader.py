"""A language model as text encoder: prompts in its template, hidden states of some of its layers.

It is loaded when a text is to be encoded that is not known yet, and gone when it may rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from lora_scripts.errors import UserError
from lora_scripts.families.flow import qwen3
from lora_scripts.families.flow.qwen3 import Source
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


class LanguageEncoder:
    """A frozen Qwen3, in the run's precision."""

    def __init__(self, source: Source, reading: Reading, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.reading, self.device, self.dtype = source, reading, device, dtype
        self.taps = reading.taps(source.layout.layers)
        self.tokens = Tokenizer.from_file(str(source.tokenizer))
        self.tokens.no_padding()
        self.tokens.no_truncation()
        self._model: Any = None
        self._kept: dict[str, Tensor] = {}
        self._digest = ""

    def fingerprint(self) -> str:
        """A digest of what turns captions into states."""
        if not self._digest:
            files = [_sha256(file) for file in (*self.source.files, self.source.tokenizer)]
            read = f"{self.reading.before!r} {self.reading.after!r} {self.taps} {self.reading.most} {self.dtype}"
            self._digest = hashlib.sha256(" ".join([*files, read]).encode()).hexdigest()
        return self._digest

    def excess(self, text: str) -> int:
        """How many tokens of a text in its template are cut off."""
        return max(0, len(self._ids(text)) - self.reading.most)

    def encode(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"states": [n, tokens, width], zeros behind the shorter ones, "lengths": [n]}, on the CPU."""
        rows = [self._kept[text] if text in self._kept else self._states(text).cpu() for text in captions]
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"states": states, "lengths": torch.tensor([len(row) for row in rows])}

    def remember(self, texts: Sequence[str]) -> None:
        """Encodes texts, and keeps what they gave."""
        for text in texts:
            if text not in self._kept:
                self._kept[text] = self._states(text).cpu()

    def rest(self) -> None:
        """The encoder leaves the memory; what is kept stays."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
            assert fill is not None  # `qwen3.added_tokens` has looked
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

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = build(self.source, max(self.taps), self.dtype).to(self.device)
        return self._model


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
