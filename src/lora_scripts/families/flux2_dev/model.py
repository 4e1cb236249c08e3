"""FLUX.2 dev: how its captions are read.

Facts: diffusers' `Flux2Pipeline` and the published tokenizer. A caption stands in Mistral's chat template behind a
fixed word of the system, and is filled up to 512 tokens before that, all of which the transformer reads; what is read
of each are the states behind three layers, side by side. What fills it up sees nothing, itself neither.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lora_scripts.families.base import LoadOptions
from lora_scripts.families.black_forest import flux2_model
from lora_scripts.families.flow.model import FlowFamily
from lora_scripts.families.flow.reader import LanguageEncoder, Reading
from lora_scripts.families.flux2_dev.check import FILES, TAPS
from lora_scripts.families.flux2_dev.facts import FACTS

_SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
READING = Reading(
    before=f"<s>[SYSTEM_PROMPT]{_SYSTEM}[/SYSTEM_PROMPT][INST]",
    after="[/INST]",
    taps=lambda layers: TAPS,
    most=512,
    filled=True,
    fill="<pad>",
    fill_first=True,
    unread="[IMG]",
)


def load(path: Path, options: LoadOptions) -> FlowFamily:
    """As `flow.model.load`."""
    return flux2_model.load(FACTS, FILES, partial(LanguageEncoder, READING), path, options)
