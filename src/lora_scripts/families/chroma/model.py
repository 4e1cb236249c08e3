"""Chroma: how its transformer is asked, and how its captions are read.

Facts: diffusers' `ChromaPipeline` and lodestones' own trainer. T5 reads a caption and nothing behind it; the
transformer reads that and the first of the tokens that fill a caption up. All tokens of a text stand at one place, so
that leaving the others out is the same as masking them. Its guidance is 0, inside of it; a negative prompt counts.

A file is drawn with the levels of FLUX.1 dev, as its publisher's sampler has them; a folder's scheduler says its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.black_forest.flux1_blocks import CHANNELS
from lora_scripts.families.black_forest.flux1_model import asked
from lora_scripts.families.black_forest.streams import INSIDE
from lora_scripts.families.chroma.check import FILES
from lora_scripts.families.chroma.facts import FACTS
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import sigmas_of
from lora_scripts.families.flow.model import FlowFamily, Way, there
from lora_scripts.families.flow.standby import Standby, require_numbers
from lora_scripts.families.flow.t5 import T5Source
from lora_scripts.families.flow.t5_reader import T5Tokens, build_t5
from lora_scripts.losses.flow import Sigmas, by_resolution

MOST = 512
"""Tokens of T5, its sign for the end among them."""
PATCH = 2
"""Latents that a token stands for, along each side."""
SIGMAS = Sigmas(mu=by_resolution())
"""Of its publisher's sampler."""


class ChromaEncoder(Standby):
    """T5, frozen, in the run's precision: {"states": [n, tokens, width], zeros behind the shorter ones, "lengths":
    [n]}."""

    def __init__(self, source: T5Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.tokens = source, T5Tokens(source)
        super().__init__((*source.files, source.tokenizer), f"{MOST} and one behind them, {dtype}", device, dtype)

    def excess(self, text: str) -> int:
        return self.tokens.excess(text, MOST)

    @torch.no_grad()
    def _read(self, text: str) -> dict[str, Tensor]:
        own = self.tokens.of(text, MOST)
        ids = [*own, self.tokens.fill][:MOST]
        mask = torch.arange(len(ids), device=self.device) < len(own)
        out = self._loaded()(input_ids=torch.tensor([ids], device=self.device), attention_mask=mask[None])
        states: Tensor = out.last_hidden_state[0]
        require_numbers(states, "T5's", self.source.path)
        return {"states": states, "lengths": torch.tensor(len(ids))}

    def _build(self) -> Any:
        return build_t5(self.source, self.dtype)


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`."""
    mask = there(texts)
    if mask is not None:
        # Truth values: numbers would be added to the scores, and mask nothing (huggingface/diffusers#12116).
        mask = F.pad(mask, (0, x.shape[-2] * x.shape[-1] // PATCH**2), value=True).to(x.device)
    return asked(transformer, x, texts["states"], timestep=sigma, attention_mask=mask)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=[*transformer.transformer_blocks, *transformer.single_transformer_blocks],
            inside=INSIDE,
            channels=CHANNELS,
            ask=ask,
            sigmas=sigmas_of(path, SIGMAS),
            patch=PATCH,
        )

    return model.load(FACTS, FILES, ChromaEncoder, path, options, way_of)
