"""FLUX.2 klein: how its transformer is asked, and how its captions are read.

Facts: diffusers' `Flux2KleinPipeline`. A caption stands in Qwen3's chat template with empty thoughts, filled up to 512
tokens, all of which the transformer reads; what is read of each are the states behind three layers, side by side. The
sampler's shift grows with the picture and shrinks with the number of its steps (`compute_empirical_mu`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.black_forest import INSIDE
from lora_scripts.families.flow.model import FlowFamily, Parts, places
from lora_scripts.families.flow.reader import LanguageEncoder, Reading
from lora_scripts.families.flow.standby import Standby
from lora_scripts.families.flux2.check import FILES
from lora_scripts.families.flux2.facts import FACTS
from lora_scripts.families.sd.latents import LatentCoder
from lora_scripts.losses.flow import Sigmas

READING = Reading(
    before="<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    taps=lambda layers: (9, 18, 27),
    most=512,
    filled=True,
)


def empirical_mu(tokens: int, steps: int) -> float:
    """Black Forest Labs' own: a line over the number of tokens for 200 steps and one for 10, and between the two a line
    over the steps; of large pictures the first alone."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190
    return slope * steps + many - 200 * slope


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`."""
    n, channels, height, width = x.shape
    states = texts["states"]
    answer: Tensor = transformer(
        hidden_states=x.flatten(2).transpose(1, 2),
        encoder_hidden_states=states,
        timestep=sigma,
        img_ids=places(1, height, width, 1, on=x.device).expand(n, -1, -1),
        txt_ids=places(1, 1, 1, states.shape[1], on=x.device).expand(n, -1, -1),
        return_dict=False,
    )[0]
    return answer.transpose(1, 2).reshape(n, channels, height, width)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def parts_of(transformer: Any, coder: LatentCoder, encoder: Standby) -> Parts:
        return Parts(
            transformer=transformer,
            blocks=[*transformer.transformer_blocks, *transformer.single_transformer_blocks],
            inside=INSIDE,
            coder=coder,
            channels=transformer.config.in_channels,
            encoder=encoder,
            ask=ask,
            sigmas=Sigmas(mu=empirical_mu),
            patch=1,
            native_size=FILES.made_for(path),
        )

    return model.load(FACTS, FILES, partial(LanguageEncoder, READING), path, options, parts_of)
