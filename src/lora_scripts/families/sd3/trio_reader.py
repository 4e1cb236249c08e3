"""How Stable Diffusion 3 reads captions: CLIP-L's and CLIP-G's states before their last layer side by side, filled up
with zeros to the width of T5's, and behind them T5's last states of 256 tokens; and the pooled states of both CLIPs.

Facts: diffusers' `StableDiffusion3Pipeline`. The CLIPs read the first 77 tokens, T5 what fills a text up, too. None
was shown weights of words. What CLIP-L pools goes through no projection: in a diffusers folder there is one, which is
read as it stands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.clip.prompts import Chunk
from lora_scripts.families.clip.tokenizer import MAX_LENGTH, clip_tokenizer
from lora_scripts.families.flow.clip_l import ClipSource
from lora_scripts.families.flow.standby import Standby, require_numbers
from lora_scripts.families.flow.t5_reader import T5Tokens, build_t5
from lora_scripts.families.sd.encoder import Encoded, TextEncoder
from lora_scripts.families.sd.load import build_text
from lora_scripts.families.sd.rows import from_rows
from lora_scripts.families.sd3.trio import Trio

MOST = 256
"""Tokens of T5, its sign for the end among them."""
LAYER = 2
"""Of a CLIP, counted from the last: whose states are read."""
PAD_G = 0
"""CLIP-G's texts are filled up with this token, which is an exclamation mark."""


class Sd3Encoder(Standby):
    """All three, frozen, T5 in the run's precision and the CLIPs in float32: {"states": [n, 77 + 256, width],
    "pooled": [n, width of both CLIPs]}."""

    def __init__(self, texts: Trio, device: torch.device, dtype: torch.dtype) -> None:
        self.texts, self.tokens = texts, T5Tokens(texts.t5)
        files = (*texts.clip_l.files, *texts.clip_g.files, *texts.t5.files, texts.t5.tokenizer)
        reading = f"{MAX_LENGTH} {MOST} {texts.clip_l.layout.projection} {dtype}, CLIP in float32"
        super().__init__(tuple(dict.fromkeys(files)), reading, device, dtype)
        self._clips: tuple[TextEncoder, TextEncoder] | None = None

    def excess(self, text: str) -> int:
        """How many of T5's tokens are cut off."""
        return self.tokens.excess(text, MOST)

    def rest(self) -> None:
        self._clips = None
        super().rest()

    @torch.no_grad()
    def _read(self, text: str) -> dict[str, Tensor]:
        narrow, wide = self._clip(0, text), self._clip(1, text)  # first: T5 then takes the room that they leave
        ids = self.tokens.filled(text, MOST)
        t5: Tensor = self._loaded()(input_ids=torch.tensor([ids], device=self.device)).last_hidden_state[0]
        assert narrow.pooled is not None and wide.pooled is not None  # both have a projection
        clips = torch.cat([narrow.states[0], wide.states[0]], -1)
        pooled = torch.cat([narrow.pooled[0], wide.pooled[0]], -1)
        require_numbers(t5, "T5's", self.texts.t5.path)
        require_numbers(clips, "CLIP's", self.texts.clip_l.path)
        clips = F.pad(clips, (0, self.texts.width - clips.shape[-1])).to(t5.dtype)
        return {"states": torch.cat([clips, t5]), "pooled": pooled}

    def _clip(self, number: int, text: str) -> Encoded:
        """Not in chunks, as other families read long texts: the first 77 tokens alone."""
        if self._clips is None:
            sources = self.texts.clip_l, self.texts.clip_g
            self._clips = (self._built(sources[0]), self._built(sources[1]))
        told = clip_tokenizer()([text], padding="max_length", max_length=MAX_LENGTH, truncation=True)
        ids, own = told.input_ids[0], told.attention_mask[0]
        if number:
            ids = [token if here else PAD_G for token, here in zip(ids, own, strict=True)]
        chunk = Chunk(tuple(ids), (1.0,) * len(ids))
        return self._clips[number].encode([[chunk]], 1, LAYER, normed=False)

    def _built(self, source: ClipSource) -> TextEncoder:
        state = from_rows(source.pieces(), source.rows())
        layout, width = source.layout, source.layout.width
        if not layout.projection:
            layout = replace(layout, projection=width)
            state["text_projection.weight"] = torch.eye(width)
        return TextEncoder(build_text(layout, state), self.device, MemoryOptions())

    def _build(self) -> Any:
        return build_t5(self.texts.t5, self.dtype)
