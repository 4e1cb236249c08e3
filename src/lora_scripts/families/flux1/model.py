"""FLUX.1: how its transformer is asked.

Facts: diffusers' `FluxPipeline`. The sampler's shift grows with the picture: a straight line of mu from 0.5 at 256
tokens to 1.15 at 4096; schnell's does not shift. dev is told its guidance: 1 while training, as in other trainers, and
what is asked for when it draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.black_forest.flux1_blocks import CHANNELS
from lora_scripts.families.black_forest.flux1_model import asked
from lora_scripts.families.black_forest.streams import INSIDE
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import line_of
from lora_scripts.families.flow.model import FlowFamily, Way, guidance, references
from lora_scripts.families.flux1.check import FILES
from lora_scripts.families.flux1.facts import FACTS
from lora_scripts.families.flux1.pair_reader import FluxEncoder
from lora_scripts.families.sd.component import SCHEDULER, configured, shift_of
from lora_scripts.losses.flow import Sigmas


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`."""
    return asked(
        transformer,
        x,
        texts["states"],
        references(texts),
        timestep=sigma,
        guidance=guidance(transformer, sigma, texts),
        pooled_projections=texts["pooled"],
    )


def sigmas(path: Path, *, guided: bool) -> Sigmas:
    """The noise levels that a base is drawn with: as its folder says, else those of dev or of schnell."""
    with configured(path / "scheduler", SCHEDULER) as config:
        if not config.get("use_dynamic_shifting", guided):
            return Sigmas(shift_of(config))
        return Sigmas(mu=line_of(config))


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=[*transformer.transformer_blocks, *transformer.single_transformer_blocks],
            inside=INSIDE,
            channels=CHANNELS,
            ask=ask,
            sigmas=sigmas(path, guided=transformer.config.guidance_embeds),
            patch=2,
            distilled=True,
        )

    return model.load(FACTS, FILES, FluxEncoder, path, options, way_of)
