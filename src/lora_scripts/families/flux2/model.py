"""FLUX.2 klein: how its captions are read.

Facts: diffusers' `Flux2KleinPipeline`. A caption stands in Qwen3's chat template with empty thoughts, filled up to 512
tokens, all of which the transformer reads; what is read of each are the states behind three layers, side by side.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lora_scripts.families.base import LoadOptions
from lora_scripts.families.black_forest import flux2_model
from lora_scripts.families.flow.model import FlowFamily
from lora_scripts.families.flow.reader import LanguageEncoder, Reading
from lora_scripts.families.flux2.check import FILES, TAPS
from lora_scripts.families.flux2.facts import FACTS

READING = Reading(
    before="<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    taps=lambda layers: TAPS,
    most=512,
    filled=True,
)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""
    return flux2_model.load(FACTS, FILES, partial(LanguageEncoder, READING), path, options)
