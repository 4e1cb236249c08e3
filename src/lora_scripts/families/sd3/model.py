"""Stable Diffusion 3: how its transformer is asked, and which noise levels it is drawn with.

Facts: diffusers' `StableDiffusion3Pipeline`. The sampler's shift is the same for every size. Its scheduler makes its
steps out of levels that are shifted already, so a sampler of any number of steps ends at the same level.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_scripts.errors import UserError
from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import sigmas_of
from lora_scripts.families.flow.model import FlowFamily, Way
from lora_scripts.families.sd.vae import FACTOR
from lora_scripts.families.sd3.check import FILES
from lora_scripts.families.sd3.facts import FACTS
from lora_scripts.families.sd3.layout import PATCH
from lora_scripts.families.sd3.names import inside
from lora_scripts.families.sd3.trio_reader import Sd3Encoder
from lora_scripts.losses.flow import Sigmas

SHIFT = 3.0
"""Of a base that does not say (Esser et al. 2024, section 5.3.2)."""
LEVELS = 1000
"""Of the sampler's table, and what a noise level is multiplied with when the model is told it."""


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`. UserError for a picture that is larger than the model has places for."""
    most = transformer.config.pos_embed_max_size * PATCH
    if max(x.shape[-2:]) > most:
        height, width = (side * FACTOR for side in x.shape[-2:])
        text = f"a picture of {width} x {height}: this base knows places up to {most * FACTOR} px a side"
        raise UserError(text, hint="choose a smaller size")
    answer: Tensor = transformer(
        hidden_states=x,
        timestep=sigma * LEVELS,
        encoder_hidden_states=texts["states"],
        pooled_projections=texts["pooled"],
        return_dict=False,
    )[0]
    return answer


def sigmas(path: Path) -> Sigmas:
    """The noise levels that a base is drawn with."""
    told = sigmas_of(path, Sigmas(SHIFT))
    return told if told.mu else replace(told, least=float(told.at(torch.tensor(1 / LEVELS, dtype=torch.float64), 1)))


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=list(transformer.transformer_blocks),
            inside=inside(len(transformer.transformer_blocks)),
            channels=transformer.config.in_channels,
            ask=ask,
            sigmas=sigmas(path),
            patch=PATCH,
        )

    return model.load(FACTS, FILES, Sd3Encoder, path, options, way_of)
