"""Qwen-Image: how its transformer is asked, how its captions are read and how its previews follow them.

Facts: diffusers' `QwenImagePipeline` and `QwenImageEditPlusPipeline`. A caption stands behind words on what a
description is, which the language model reads and the transformer does not: the first 34 tokens, by number, whatever
they are. What is read of the others are the states behind all layers, none of them filled up, at most 512. Led away
from the negative prompt, the answer keeps the length that it had at each place. What a picture is drawn from stands
behind it, each with a rotation of its own; Edit from 2511 on is told that it has no noise (`zero_cond_t`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import sigmas_of
from lora_scripts.families.flow.model import FlowFamily, Way, behind, references, there
from lora_scripts.families.qwen_image.check import FILES
from lora_scripts.families.qwen_image.facts import FACTS
from lora_scripts.families.qwen_image.layout import PATCH
from lora_scripts.families.qwen_image.names import INSIDE
from lora_scripts.families.qwen_image.seeing import SeeingEncoder
from lora_scripts.families.sd.latents import pack, unpack
from lora_scripts.families.sd.steps import led_away
from lora_scripts.losses.flow import Sigmas, by_resolution

SIGMAS = Sigmas(mu=by_resolution(0.5, 0.9, 256, 8192), terminal=0.02)
"""Of the published sampler."""


def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`."""
    packed, own = [pack(one) for one in (x, *references(texts))], there(texts)
    n, channels, height, width = packed[0].shape
    tokens = [one.flatten(2).transpose(1, 2) for one in packed]
    answer: Tensor = transformer(
        hidden_states=behind(tokens[0], tokens[1:], 1),
        encoder_hidden_states=texts["states"],
        encoder_hidden_states_mask=None if own is None else own.to(x.device),
        timestep=sigma,
        img_shapes=[[(1, *one.shape[2:]) for one in packed]] * n,
        return_dict=False,
    )[0]
    return unpack(answer[:, : height * width].transpose(1, 2).reshape(n, channels, height, width))


def lead(without: Tensor, with_prompt: Tensor, cfg: float) -> Tensor:
    """As `sd.steps.Lead`: of each token, the direction of the one and the length of the other."""
    led, own = (pack(x) for x in (led_away(without, with_prompt, cfg), with_prompt))
    return unpack(led * (own.norm(dim=1, keepdim=True) / led.norm(dim=1, keepdim=True)))


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        return Way(
            blocks=list(transformer.transformer_blocks),
            inside=INSIDE,
            channels=transformer.config.in_channels // PATCH**2,
            ask=ask,
            sigmas=sigmas_of(path, SIGMAS),
            patch=PATCH,
            lead=lead,
        )

    return model.load(FACTS, FILES, SeeingEncoder, path, options, way_of)
