"""How the transformer of a FLUX.2 is asked.

Facts: diffusers' `Flux2Pipeline` and `Flux2KleinPipeline`. The sampler's shift grows with the picture and shrinks with
the number of its steps (`compute_empirical_mu`). dev is told its guidance: 1 while training, as FLUX.1 is, and what is
asked for when it draws.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.black_forest.flux2_layout import Flux2Layout
from lora_scripts.families.black_forest.streams import INSIDE
from lora_scripts.families.facts import Facts
from lora_scripts.families.flow import model
from lora_scripts.families.flow.model import FlowFamily, Way, behind, guidance, places, references
from lora_scripts.families.flow.standby import Standby
from lora_scripts.families.flow.transformer import Transformer
from lora_scripts.losses.flow import Sigmas

APART = 10
"""Steps between a picture and what it is drawn from, and between one of those and the next, on the axis of time."""


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
    states, pictures = texts["states"], [x, *references(texts)]
    stand = [places(1, *one.shape[2:], 1, on=x.device) for one in pictures]
    for number, place in enumerate(stand[1:], 1):
        place[:, 0] = APART * number
    tokens = [one.flatten(2).transpose(1, 2) for one in pictures]
    answer: Tensor = transformer(
        hidden_states=behind(tokens[0], tokens[1:], 1),
        encoder_hidden_states=states,
        timestep=sigma,
        img_ids=behind(stand[0], stand[1:]).expand(n, -1, -1),
        txt_ids=places(1, 1, 1, states.shape[1], on=x.device).expand(n, -1, -1),
        guidance=guidance(transformer, sigma, texts),
        return_dict=False,
    )[0]
    return answer[:, : height * width].transpose(1, 2).reshape(n, channels, height, width)


def load(
    facts: Facts,
    files: Transformer[Flux2Layout],
    encoder_of: Callable[[Any, torch.device, torch.dtype], Standby],
    path: Path,
    options: LoadOptions,
) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=[*transformer.transformer_blocks, *transformer.single_transformer_blocks],
            inside=INSIDE,
            channels=transformer.config.in_channels,
            ask=ask,
            sigmas=Sigmas(mu=empirical_mu),
            patch=1,
            distilled=transformer.config.guidance_embeds,
        )

    return model.load(facts, files, encoder_of, path, options, way_of)
