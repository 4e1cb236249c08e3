"""FLUX.3 klein: how its transformer is asked, and how its captions are read.

Facts: diffusers' modular pipeline for FLUX.3 (it has no other). A caption stands in Qwen3-VL's chat template, filled up
to a whole number of windows of 80 tokens; what fills it is read by the transformer, which therefore takes texts of one
length at a time. Pictures stand on a grid of half steps. The sampler's shift is the same for every size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import Qwen2Tokenizer

from lora_scripts.errors import UserError
from lora_scripts.families.base import Conditions, LoadOptions
from lora_scripts.families.flow import model
from lora_scripts.families.flow.levels import sigmas_of
from lora_scripts.families.flow.model import FlowFamily, Way, by_length, places
from lora_scripts.families.flow.reader import LanguageEncoder, Reading
from lora_scripts.families.flux3.check import FILES, TAPS
from lora_scripts.families.flux3.facts import FACTS
from lora_scripts.families.flux3.names import INSIDE
from lora_scripts.families.sd.component import PLAIN
from lora_scripts.losses.flow import Sigmas

READING = Reading(
    before="<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    taps=lambda layers: TAPS,
    most=8192,
    filled=True,
    window=80,
    least=100,
)
"""Of the published model; its makers' own prompt upsampler writes 100 to 350 words."""
_TEXT = "\N{WHITE SQUARE}"
"""In place of a text."""
SIGMAS = Sigmas(6.93)
"""Of the published sampler."""
_GRID = 0.5
"""From one token of a picture to the next, where 1 is from one of a text to the next."""


def reading_of(base: Path) -> Reading:
    """With the chat template that a diffusers folder brings. UserError for one that is none."""
    file = base / "tokenizer" / "chat_template.jinja"
    if not file.is_file():
        return READING
    asked, how = [{"role": "user", "content": _TEXT}], {"tokenize": False, "add_generation_prompt": True}
    try:
        told = str(Qwen2Tokenizer().apply_chat_template(asked, chat_template=file.read_text("utf-8"), **how))
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(f"is no chat template: {error}", file=file, hint=PLAIN) from None
    before, found, after = told.partition(_TEXT)
    if not found:
        raise UserError("this chat template leaves out what is asked", file=file, hint=PLAIN)
    return replace(READING, before=before, after=after)


def ask_alike(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
    """As `flow.model.Ask`, of texts that fill as many windows."""
    states = texts["states"]
    n, channels, height, width = x.shape
    grid = places(1, height, width, 1, on=x.device).float()
    grid[:, 1:3] *= _GRID
    answer: Tensor = transformer(
        hidden_states=x.flatten(2).transpose(1, 2),
        encoder_hidden_states=states,
        timestep=sigma,
        img_ids=grid,
        txt_ids=places(1, 1, 1, states.shape[1], on=x.device),
        return_dict=False,
    )[0]
    return answer.transpose(1, 2).reshape(n, channels, height, width)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""

    def way_of(transformer: Any) -> Way:
        early = (transformer.txt_mode_blocks, transformer.mode_blocks["image"])
        return Way(
            blocks=[block for blocks in (*early, transformer.single_transformer_blocks) for block in blocks],
            inside=INSIDE,
            channels=transformer.config.in_channels,
            ask=by_length(ask_alike),
            sigmas=sigmas_of(path, SIGMAS),
            patch=1,
            idle=[module for name, module in transformer.named_modules() if name.endswith(".image_cond")],
        )

    return model.load(FACTS, FILES, partial(LanguageEncoder, reading_of(path)), path, options, way_of)
