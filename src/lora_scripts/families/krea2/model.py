"""Krea 2: how its transformer is asked, and how its captions are read.

Facts: diffusers' `Krea2Pipeline`. A caption stands behind Qwen-Image's words on what a description is, the first 34
tokens, which the language model reads and the transformer does not; what stands after it is never cut off. The
pipeline fills a caption up before that, and what fills it is seen by nobody and counts in no position: so here none is
filled up. Of each token the states behind twelve layers are read, side by side.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import sigmas_of
from lora_scripts.families.flow.model import FlowFamily, Way, places, there
from lora_scripts.families.flow.reader import DESCRIBED, DESCRIBED_BY, LanguageEncoder, Reading
from lora_scripts.families.flow.standby import Standby
from lora_scripts.families.krea2.check import FILES, Texts
from lora_scripts.families.krea2.facts import FACTS
from lora_scripts.families.krea2.layout import PATCH
from lora_scripts.families.krea2.names import INSIDE
from lora_scripts.families.sd.check import index_of
from lora_scripts.families.sd.latents import pack, unpack
from lora_scripts.losses.flow import Sigmas, by_resolution

_ENDING = 5
"""Tokens of what stands after a caption."""
SIGMAS = Sigmas(mu=by_resolution(0.5, 1.15, 256, 6400))
"""Of the published sampler: from 256 x 256 to 1280 x 1280 pixels."""
TURBO = Sigmas(math.exp(1.15))
"""Of a folder that says that it is distilled, whatever its scheduler says."""


def reading(taps: tuple[int, ...]) -> Reading:
    """With the states behind these layers."""
    return Reading(
        before=DESCRIBED[0],
        after=DESCRIBED[1],
        taps=lambda layers: taps,
        most=DESCRIBED_BY + 512,
        filled=False,
        dropped=DESCRIBED_BY,
        ending=_ENDING,
    )


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`."""
    states, packed, own = texts["states"], pack(x), there(texts)
    n, channels, height, width = packed.shape
    grid = places(1, height, width, on=x.device)
    answer: Tensor = transformer(
        hidden_states=packed.flatten(2).transpose(1, 2),
        encoder_hidden_states=states.unflatten(-1, (transformer.config.num_text_layers, -1)),
        timestep=sigma,
        position_ids=torch.cat([grid.new_zeros(states.shape[1], 3), grid]),
        encoder_attention_mask=None if own is None else own.to(x.device),
        return_dict=False,
    )[0]
    return unpack(answer.transpose(1, 2).reshape(n, channels, height, width))


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def encoder_of(texts: Texts, device: torch.device, dtype: torch.dtype) -> Standby:
        return LanguageEncoder(reading(texts.taps), texts.model, device, dtype)

    def way_of(transformer: Any) -> Way:
        fusion = transformer.text_fusion
        return Way(
            blocks=[*fusion.layerwise_blocks, *fusion.refiner_blocks, *transformer.transformer_blocks],
            inside=INSIDE,
            channels=transformer.config.in_channels // PATCH**2,
            ask=ask,
            sigmas=TURBO if index_of(path).get("is_distilled") else sigmas_of(path, SIGMAS),
            patch=PATCH,
        )

    return model.load(FACTS, FILES, encoder_of, path, options, way_of)
