"""How FLUX.1 reads captions: T5's last states of 512 tokens, and CLIP's pooled state. CLIP takes LoRA, T5 does not.

Facts: diffusers' `FluxPipeline`. T5 reads what fills a text up, too, and so does the transformer; CLIP reads the first
77 tokens. Neither was shown weights of words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.adapters.layer import Adapter, counting
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.base import Conditions
from lora_scripts.families.clip.tokenizer import MAX_LENGTH, clip_tokenizer
from lora_scripts.families.flow import clip_l
from lora_scripts.families.flow.standby import Standby, require_numbers
from lora_scripts.families.flow.t5_reader import T5Tokens, build_t5
from lora_scripts.families.flux1.pair import Pair
from lora_scripts.families.sd.encoder import TextEncoder
from lora_scripts.families.sd.load import build_text
from lora_scripts.families.sd.rows import from_rows

MOST = 512
"""Tokens of T5, its sign for the end among them."""


class PooledClip(TextEncoder):
    """CLIP, asked for its pooled state."""

    def pooled(self, captions: Sequence[str]) -> Tensor:
        """[n, width] float32"""
        self.wake()
        told = clip_tokenizer()(list(captions), padding="max_length", max_length=MAX_LENGTH, truncation=True)
        pooled: Tensor = self.model(torch.tensor(told.input_ids, device=self.device)).pooler_output
        return pooled

    @property
    def worn(self) -> list[Adapter]:
        """What is on it."""
        return [module for module in self.inner.modules() if isinstance(module, Adapter)]


class FluxEncoder(Standby):
    """Both, frozen, T5 in the run's precision and CLIP in float32: {"states": [n, 512, width], "pooled": [n, width]}.

    T5 goes when it may rest. So does CLIP, until somebody asks for it, to put a LoRA on it or to merge one into it:
    from then on its pooled state is read anew whenever it is needed; T5's states stay those that are kept.
    """

    def __init__(self, texts: Pair, device: torch.device, dtype: torch.dtype) -> None:
        self.texts = texts
        self.tokens = T5Tokens(texts.t5)
        files = (*texts.clip.files, *texts.t5.files, texts.t5.tokenizer)
        super().__init__(files, f"{MOST} {MAX_LENGTH} {dtype}, CLIP in float32", device, dtype)
        self._clip: PooledClip | None = None
        self._lent = False

    def excess(self, text: str) -> int:
        """How many of T5's tokens are cut off."""
        return self.tokens.excess(text, MOST)

    @property
    def clip(self) -> PooledClip:
        """Loaded, where it is not there."""
        if self._clip is None:
            source = self.texts.clip
            model = build_text(source.layout, from_rows(source.pieces(), source.rows()))
            self._clip = PooledClip(model, self.device, MemoryOptions())
        return self._clip

    @property
    def roots(self) -> Mapping[str, Callable[[], nn.Module]]:
        return {clip_l.PART: self._lend}

    def _lend(self) -> nn.Module:
        self._lent = True
        inner: nn.Module = self.clip.inner
        return inner

    def trainable(self) -> Iterator[tuple[str, nn.Module]]:
        return ((f"{clip_l.PART}.{path}", layer) for path, layer in self.clip.trainable())

    def told(self, captions: Sequence[str], encoded: Conditions | None = None) -> Conditions:
        texts = super().told(captions, encoded)
        return {**texts, "pooled": self.clip.pooled(captions)} if self._lent else texts

    def rest(self) -> None:
        if not self._lent:
            self._clip = None
        super().rest()

    @torch.no_grad()
    def _read(self, text: str) -> dict[str, Tensor]:
        with counting(self.clip.worn, 0.0):
            pooled = self.clip.pooled([text])[0]  # first: T5 then takes the room that CLIP leaves
        language = self._loaded()
        ids = self.tokens.filled(text, MOST)
        states = language(input_ids=torch.tensor([ids], device=self.device)).last_hidden_state[0]
        require_numbers(states, "T5's", self.texts.t5.path)
        require_numbers(pooled, "CLIP's", self.texts.clip.path)
        return {"states": states, "pooled": pooled}

    def _build(self) -> Any:
        return build_t5(self.texts.t5, self.dtype)
