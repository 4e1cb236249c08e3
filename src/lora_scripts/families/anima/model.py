"""Anima: how its transformer is asked, and how its captions are read.

Facts: diffusers' `AnimaModularPipeline`. A caption stands in no template. Qwen3 reads it, and an adapter fills the
tokens that T5 would make of it with what Qwen3's last states say; behind them the transformer reads zeros, up to 512.
The transformer is one of films, for which a picture is a film of one frame that is filled up nowhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.families.anima import layout
from lora_scripts.families.anima.check import FILES, Texts
from lora_scripts.families.anima.facts import FACTS
from lora_scripts.families.anima.layout import PATCH, SAMPLER_SHIFT, WORDS
from lora_scripts.families.anima.names import INSIDE
from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import sigmas_of
from lora_scripts.families.flow.model import FlowFamily, Way
from lora_scripts.families.flow.reader import LanguageEncoder, Reading
from lora_scripts.families.flow.token_files import bare_tokenizer
from lora_scripts.families.library import of_diffusers
from lora_scripts.families.sd.rows import from_rows
from lora_scripts.losses.flow import Sigmas

READING = Reading(before="", after="", taps=lambda layers: (layers,), most=WORDS, filled=False)


class AnimaEncoder(LanguageEncoder):
    """Qwen3 and the adapter behind it."""

    def __init__(self, texts: Texts, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(READING, texts.model, device, dtype)
        self.texts, self.t5 = texts, bare_tokenizer(texts.t5)
        self._files = (*self._files, *texts.files, texts.t5)  # they make the states, too

    def excess(self, text: str) -> int:
        """Of the tokenizer that cuts off more."""
        return max(super().excess(text), len(self.t5.encode(text).ids) - WORDS)

    def _states(self, text: str) -> Tensor:
        """[tokens of T5, width], the sign at the end among them."""
        ids = self.t5.encode(text).ids
        if len(ids) > WORDS:
            ids = [*ids[: WORDS - 1], ids[-1]]
        if self._ids(text):
            given = super()._states(text)
        else:  # no text at all, of which the adapter sees nothing
            given = torch.zeros(1, self.texts.layout.source, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            target = torch.tensor([ids], device=self.device)
            states: Tensor = self._both()["adapter"](source_hidden_states=given[None], target_input_ids=target)
        return states[0]

    def _build(self) -> Any:
        return nn.ModuleDict({"language": super()._build(), "adapter": self._adapter()})

    def _both(self) -> Any:
        return super()._loaded()

    def _loaded(self) -> Any:
        return self._both()["language"]

    def _adapter(self) -> Any:
        with torch.device("meta"):
            adapter = of_diffusers("AnimaTextConditioner")(**layout.adapter_config(self.texts.layout))
        state = from_rows(self.texts.pieces(), self.texts.table, dtype=self.dtype)
        whole = {key: value.to(self.dtype, copy=True) for key, value in state.items()}
        adapter.load_state_dict(whole, strict=True, assign=True)
        adapter.rotary_emb = type(adapter.rotary_emb)(self.texts.layout.head)  # computed, and in no file
        return adapter.requires_grad_(False).eval()


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`."""
    states, picture = texts["states"], F.pad(x, (0, 0, 0, 0, 0, 1))  # the channel that says where it is filled up
    answer: Tensor = transformer(
        hidden_states=picture.unsqueeze(2),
        timestep=sigma,
        encoder_hidden_states=F.pad(states, (0, 0, 0, max(0, WORDS - states.shape[1]))),
        return_dict=False,
    )[0]
    return answer.squeeze(2)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=list(transformer.transformer_blocks),
            inside=INSIDE,
            channels=transformer.config.in_channels,
            ask=ask,
            sigmas=sigmas_of(path, Sigmas(SAMPLER_SHIFT)),
            patch=PATCH,
        )

    return model.load(FACTS, FILES, AnimaEncoder, path, options, way_of)
