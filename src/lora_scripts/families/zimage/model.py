"""Z-Image: how its transformer is asked, and how its captions are read.

Facts: diffusers' `ZImagePipeline`. The model is told how much of the picture is there, 1 - sigma, and answers with the
velocity the other way round. A caption stands in Qwen3's chat template, ready for the answer; what is read is the last
hidden state but one of its own tokens, none of them filled up.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.model import FlowFamily, Way
from lora_scripts.families.flow.reader import LanguageEncoder, Reading
from lora_scripts.families.zimage.check import FILES, sampler_shift
from lora_scripts.families.zimage.facts import FACTS
from lora_scripts.families.zimage.layout import PATCH
from lora_scripts.families.zimage.names import INSIDE
from lora_scripts.losses.flow import Sigmas

READING = Reading(
    before="<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    taps=lambda layers: (layers - 1,),
    most=512,
    filled=False,
)


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`."""
    lengths = texts["lengths"].tolist()
    states = [row[:length] for row, length in zip(texts["states"], lengths, strict=True)]
    pictures = list(x.unsqueeze(2).unbind(0))  # [c, 1, h, w] each: one frame
    answer: list[Tensor] = transformer(pictures, 1 - sigma, states, return_dict=False)[0]
    return -torch.stack(answer).squeeze(2)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=[*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers],
            inside=INSIDE,
            channels=transformer.config.in_channels,
            ask=ask,
            sigmas=Sigmas(sampler_shift(path)),
            patch=PATCH,
        )

    return model.load(FACTS, FILES, partial(LanguageEncoder, READING), path, options, way_of)
