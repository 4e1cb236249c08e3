"""Qwen-Image-2.1: how its transformer is asked, and how its captions are read.

Facts: diffusers' `QwenImage21Pipeline`. A caption stands behind a system's word in Qwen3-VL's chat format; the language
model reads that word, the transformer does not. What is read of the rest are the states behind the last layer, before
its norm. Text and picture are one sequence, in which a word sees those before it, and the picture all; where the
picture stands is told by how many tokens the text has, so the transformer takes texts of one length at a time.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import sigmas_of
from lora_scripts.families.flow.model import FlowFamily, Way, by_length
from lora_scripts.families.flow.reader import LanguageEncoder, Reading
from lora_scripts.families.qwen_image21.check import FILES
from lora_scripts.families.qwen_image21.facts import FACTS
from lora_scripts.families.qwen_image21.names import INSIDE
from lora_scripts.losses.flow import Sigmas, by_resolution

_SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
READING = Reading(
    before=f"{_SYSTEM}<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    taps=lambda layers: (layers,),
    most=8192,
    filled=False,
    empty=" ",
    dropped=_SYSTEM,
)
"""At most as many tokens as the transformer has places for."""
SIGMAS = Sigmas(mu=by_resolution(0.5, 0.9, 256, 8192), terminal=0.02)
"""Of the published sampler."""
_SLOT = 4
"""Tokens of a picture, 2 x 2, that one place of the text encoder's sequence stands for."""


def ask_alike(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`, of texts of one length."""
    states, (n, channels, height, width) = texts["states"], x.shape
    slots = torch.arange(states.shape[1] + height * width // _SLOT, device=x.device) >= states.shape[1]
    answer: Tensor = transformer(
        hidden_states=x.flatten(2).transpose(1, 2),
        encoder_hidden_states=states,
        timestep=sigma,
        img_shapes=[[(1, height, width)]] * n,
        img_mask=slots.expand(n, -1),
        return_dict=False,
    )[0]
    return answer[:, -height * width :].transpose(1, 2).reshape(n, channels, height, width)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=list(transformer.transformer_blocks),
            inside=INSIDE,
            channels=transformer.config.in_channels,
            ask=by_length(ask_alike),
            sigmas=sigmas_of(path, SIGMAS),
            patch=1,
        )

    return model.load(FACTS, FILES, partial(LanguageEncoder, READING), path, options, way_of)
